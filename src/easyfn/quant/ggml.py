"""What lies in a `.gguf` file and what stands in a slot: ggml's blocks as weights and back, byte for byte."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.slots import find_slots
from ..core.weight import dense, format_of
from ..io.formats import Packed, register
from ..io.gguf.layouts import KeysAndValues
from ..io.gguf.read import FLOATS, Blocks
from ..names.rules import Tensors
from .grouped import Grouped, group_of, grouped, integer_codes
from .kquant import BLOCKS, KQuant, from_blocks, to_blocks
from .micro import Micro

BLOCK = 32  # entries of Q4_0, Q5_0, Q8_0
SYMMETRIC = {4: "Q4_0", 5: "Q5_0", 8: "Q8_0"}  # ggml's kind by bits: one float16 scale, signed codes
_HELD = ("linear", "head", "router", "embedding", "experts")


def from_ggml(raw: np.ndarray, kind: str, dtype: Any = "float32") -> Any:
    """The weight of a tensor's bytes, uint8 `(..., out, bytes of a row)`: a `Grouped` (Q4_0, Q5_0, Q8_0), `Micro` (MXFP4) or
    `KQuant`.

    ```python
    import numpy as np, easyfn as ef
    blocks = np.zeros((2, 34), np.uint8)  # Q8_0: a float16 scale and 32 codes
    assert ef.shape_of(ef.quant.from_ggml(blocks, "Q8_0")) == (2, 32)
    ```
    """
    if kind in BLOCKS:
        return from_blocks(raw, kind, dtype)
    lead = raw.shape[:-1]
    if kind == "MXFP4":  # a scale, and codes whose second half is in the high bits: ours are neighbours
        blocks = raw.reshape(*lead, -1, 17)
        one, two = blocks[..., 1:] & 15, blocks[..., 1:] >> 4
        pairs = np.concatenate([one[..., 0::2] | one[..., 1::2] << 4, two[..., 0::2] | two[..., 1::2] << 4], axis=-1)
        return Micro(pairs.reshape(*lead, -1), np.ascontiguousarray(blocks[..., 0]), dtype=jnp.dtype(dtype).name)
    blocks = raw.reshape(*lead, -1, {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34}[kind])
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    rest = np.ascontiguousarray(blocks[..., 2:])
    fixed: dict[str, Any] = {"dtype": jnp.dtype(dtype).name, "name": kind.lower()}
    if kind == "Q8_0":
        return grouped(rest.view(np.int8).reshape(*lead, -1), scales, bits=8, **fixed)
    if kind == "Q4_0":
        return Grouped(rest.reshape(*lead, -1), scales, bits=4, **fixed)  # `pack` has ggml's order in groups of 32
    codes = np.concatenate([rest[..., 4:] & 15, rest[..., 4:] >> 4], axis=-1)
    high = np.unpackbits(rest[..., :4], axis=-1, bitorder="little")
    codes = (codes | (high << 4)).astype(np.int8) - np.int8(16)
    return grouped(codes.reshape(*lead, -1), scales, bits=5, **fixed)


def to_ggml(path: str, w: Any) -> tuple[str, np.ndarray]:
    """The kind and the bytes of a weight: the inverse of `from_ggml`. Nothing is rounded.

    Raises `ValueError` for a weight that no kind of ggml holds as it is.
    """
    if isinstance(w, KQuant):
        return w.kind, to_blocks(w)
    if isinstance(w, Micro) and w.kind == "mxfp4":
        scales = np.asarray(w.scales)
        pairs = np.asarray(w.codes).reshape(*scales.shape, 16)
        codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*scales.shape, 32)
        raw = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << 4], axis=-1)
        return "MXFP4", raw.reshape(*scales.shape[:-1], -1)
    kind = SYMMETRIC.get(w.bits) if isinstance(w, Grouped) else None
    if kind is None or w.zeros is not None or w.order is not None or w.smooth is not None or group_of(w) != BLOCK:
        raise ValueError(
            f"save: {path} is {format_of(w)}, which a .gguf file cannot hold: its blocks are symmetric, of 32 entries, "
            "with 4, 5 or 8 bits, or mxfp4. Round it: ef.save_gguf(model, path, kind='Q4_K'); or quantize with 'a8q' instead"
        )
    scales = np.asarray(w.scales)
    halves = scales.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), scales.astype(np.float32)):
        raise ValueError(
            f"save: {path} ({format_of(w)}) has scales of {scales.dtype} that float16, which a .gguf file has, would "
            "round. Say so: ef.save_gguf(model, path, kind='Q4_0'); or quantize with 'a8q' instead"
        )
    head = halves[..., None].view(np.uint8)
    lead = scales.shape
    host = Grouped(np.asarray(w.codes), scales, bits=w.bits)
    if kind == "Q8_0":
        body = host.codes.view(np.uint8).reshape(*lead, BLOCK)
    elif kind == "Q4_0":
        body = host.codes.reshape(*lead, BLOCK // 2)
    else:
        codes = (integer_codes(host).reshape(*lead, BLOCK) + np.int8(16)).astype(np.uint8)
        high = np.packbits(codes >> 4, axis=-1, bitorder="little")
        body = np.concatenate([high, (codes[..., :16] & 15) | ((codes[..., 16:] & 15) << 4)], axis=-1)
    return kind, np.concatenate([head, body], axis=-1).reshape(*lead[:-1], -1)


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that a `.gguf` file holds quantized (see `easyfn.io.formats.Reader`)."""
    held = {found.path for found in find_slots(model, _HELD)}
    found: dict[str, Packed] = {}
    for path, source in sources.items():
        infos = [header[name] for name in source.names if name in header]
        kinds = tuple(info.kind for info in infos)
        if len(infos) < len(source.names) or all(kind in FLOATS for kind in kinds):
            continue  # missing, or plain: read as always
        found[path] = Packed(source.names, functools.partial(_make, source, kinds, path in held))
    return found


def _make(source: Tensors, kinds: tuple[str, ...], held: bool, parts: list[np.ndarray], dtype: Any) -> Any:
    if held and len(set(kinds)) == 1 and not isinstance(source.layout, KeysAndValues):
        return from_ggml(np.ascontiguousarray(source.join(parts)), kinds[0], dtype or "float32")
    # A plain array's place, or matrices joined that are quantized in different ways: dense.
    each = [
        part if kind in FLOATS else np.asarray(dense(from_ggml(part, kind)))
        for part, kind in zip(parts, kinds, strict=True)
    ]
    return np.ascontiguousarray(source.join(each)).astype(dtype or np.float32)


def write(source: Tensors, weight: Any) -> dict[str, Blocks]:
    """The tensors that hold a weight, or one layer of a stacked one (see `easyfn.io.formats.Writer`)."""
    if isinstance(source.layout, KeysAndValues):
        raise ValueError(
            f"save: {source.path} is {format_of(weight)}, and a .gguf file holds a part of it turned: round it again, "
            "ef.save_gguf(model, path, kind='Q4_0'), or leave it dense"
        )
    kind, raw = to_ggml(source.path, weight)
    return {name: Blocks(kind, piece) for name, piece in zip(source.names, source.split(raw), strict=True)}


register("gguf", reader=read, writer=write)
