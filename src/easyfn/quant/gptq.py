"""GPTQ's layout on disk, read: AutoGPTQ's and GPTQModel's, of 2, 3, 4 and 8 bits, with and without act-order.

Of a layer `P` with a weight `(out, in)`: `P.qweight` int32 `(in * bits / 32, out)`, a column's codes one after the other
from the lowest bit on; `P.qzeros` int32 `(groups, out * bits / 32)`, packed along the rows, less one in the format
`gptq` (v1), as they are in `gptq_v2`; `P.scales` float16 `(groups, out)`; `P.g_idx` int32 `(in,)`, the group of every
column. The weight is `scales[g_idx] * (codes - zeros[g_idx])` (Frantar et al. 2022, arXiv 2210.17323).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..io.formats import Packed, register
from ..names.rules import Tensors
from .grouped import Grouped, grouped
from .pieces import join, quantized


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that a GPTQ checkpoint holds quantized (see `easyfn.io.formats.Reader`).

    Which layers those are, and how many bits and what groups each has, is read from its tensors, so that `lm_head`,
    `modules_in_block_to_quantize` and `dynamic` need no rules. Raises `ValueError` for a format other than v1 and v2.
    """
    kind = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format"):
        kind = "marlin"
    if kind not in ("gptq", "gptq_v2"):
        raise ValueError(
            f"the checkpoint is quantized with gptq in the format {kind!r}; easyfn reads 'gptq' (v1) and 'gptq_v2'. "
            "Formats made for one kernel hold the same codes in another order: look for the original checkpoint"
        )
    found: dict[str, Packed] = {}
    for path, source in sources.items():
        layers = quantized_layers(source, header)
        if not layers:
            continue
        names = [[f"{p}.{part}" for part in ("qweight", "qzeros", "scales")] for p in layers]
        for own, layer in zip(names, layers, strict=True):
            own += [name for name in (f"{layer}.g_idx",) if name in header]
        make = functools.partial(_make, path, source, names, kind == "gptq", settings)
        found[path] = Packed(tuple(name for own in names for name in own), make)
    return with_idle_biases(found, sources, header)


def quantized_layers(source: Tensors, header: Mapping[str, Any]) -> list[str]:
    """The layers `P` of a slot's weights `P.weight`, if the file has a `P.qweight` for them, or else none."""
    layers = [name.removesuffix(".weight") for name in source.names]
    held = quantized(source, lambda name: f"{name.removesuffix('.weight')}.qweight" in header)
    return layers if held else []


def with_idle_biases(
    found: dict[str, Packed], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The same, with the biases that quantizers write for layers that have none: they must be zero."""
    wanted = {name for source in sources.values() for name in source.names}
    out = {}
    for path, (names, make) in found.items():
        biases = [n.removesuffix("qweight") + "bias" for n in names if n.endswith(".qweight")]
        biases = [name for name in biases if name in header and name not in wanted]
        out[path] = (
            Packed((*names, *biases), functools.partial(_without, path, make, biases)) if biases else found[path]
        )
    return out


def _without(path: str, make: Any, biases: list[str], parts: list[np.ndarray], dtype: Any) -> Any:
    for name, bias in zip(biases, parts[-len(biases) :], strict=True):
        if np.any(bias):
            raise ValueError(f"{path}: the checkpoint has a bias {name!r}, and the model has none there")
    return make(parts[: -len(biases)], dtype)


def _make(
    path: str,
    source: Tensors,
    names: Sequence[Sequence[str]],
    v1: bool,
    settings: Mapping[str, Any],
    parts: list[np.ndarray],
    dtype: Any,
) -> Any:
    weights, rest = [], list(parts)
    for own in names:
        mine, rest = rest[: len(own)], rest[len(own) :]
        weights.append(_matrix(path, settings, v1, dtype, *mine))
    return join(source, weights)


def _matrix(
    path: str,
    settings: Mapping[str, Any],
    v1: bool,
    dtype: Any,
    qweight: np.ndarray,
    qzeros: np.ndarray,
    scales: np.ndarray,
    g_idx: np.ndarray | None = None,
) -> Grouped:
    groups, out = scales.shape
    bits = 32 * qzeros.shape[1] // out
    if bits not in (2, 3, 4, 8):
        raise ValueError(
            f"{path}: qzeros {qzeros.shape} beside scales {scales.shape} make {bits} bits, not 2, 3, 4 or 8"
        )
    width = 32 * qweight.shape[0] // bits
    order = _order(path, g_idx, width, groups, bool(settings.get("desc_act")))
    codes = unpack(qweight.T, bits)
    if order is not None:
        codes = codes[:, order]
        order = order.astype(np.int32)[None]
    if v1 and bits == 3:
        zeros = (unpack(qzeros, bits) + 1) & 7
    else:
        # One is added to the word, as GPTQModel does: its inverse, for a zero of 0 borrowed from the next one.
        step = sum(1 << shift for shift in range(0, 32, bits)) if v1 else 0
        zeros = unpack((qzeros.view(np.uint32) + np.uint32(step)).view(np.int32), bits)
    zeros = np.ascontiguousarray(zeros.T)
    scales = np.ascontiguousarray(scales.T)
    common: dict[str, Any] = {"bits": bits, "order": order, "dtype": dtype or scales.dtype, "name": "gptq"}
    if not settings.get("sym", True):
        return grouped(codes, scales, zeros, **common)
    middle = 1 << (bits - 1)
    if np.any(zeros != middle):
        raise ValueError(
            f"{path}: the checkpoint says sym=true, and not all its zeros are {middle}; load it with "
            "config_overrides={'quantization_config': {..., 'sym': False}}"
        )
    return grouped((codes.astype(np.int16) - middle).astype(np.int8), scales, **common)


def _order(path: str, g_idx: np.ndarray | None, width: int, groups: int, sorted_by_activation: bool) -> Any:
    """The columns sorted by group, or `None` where they are."""
    if width % groups:
        raise ValueError(f"{path}: {groups} groups do not divide {width} columns")
    plain = np.arange(width) // (width // groups)
    if g_idx is None or (np.array_equal(g_idx, plain) and not sorted_by_activation):
        return None
    order = np.argsort(g_idx, kind="stable")
    if g_idx.shape != (width,) or not np.array_equal(g_idx[order], plain):
        raise ValueError(f"{path}: its g_idx does not put {width // groups} columns in each of {groups} groups")
    return order


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes, uint8 `(rows, words * 32 / bits)`, of int32 `(rows, words)`: the lowest bits first, codes of 3 bits across
    words."""
    words = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 8:
        return words
    if bits == 3:
        each = np.unpackbits(words, axis=-1, bitorder="little").reshape(words.shape[0], -1, 3)
        return each[..., 0] | each[..., 1] << 1 | each[..., 2] << 2
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((words[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(words.shape[0], -1)


register("gptq", reader=read)
