"""bitsandbytes' layout on disk, read and written: 4-bit (nf4, fp4, nested or not) and 8-bit, as transformers has it.

Of a weight `P.weight` of shape `(out, in)`, 4-bit: `P.weight` uint8 `(out * in / 2, 1)`, `P.weight.absmax`,
`P.weight.quant_map`, `P.weight.quant_state.bitsandbytes__nf4` (JSON as bytes), and for nested scales
`P.weight.nested_absmax`, `P.weight.nested_quant_map`. 8-bit: `P.weight` int8 `(out, in)`, `P.SCB`, `P.weight_format`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.slots import find_slots
from ..core.tree import at, expand, nodes
from ..core.weight import format_of
from ..io.formats import Packed, register
from ..names.rules import Tensors
from .int8 import Int8
from .nf4 import LEVELS, NESTED, NF4, aligned, dynamic_map, scales_of
from .pieces import cut, dense_dtype, flat, join, quantized
from .product import replace

STATE = "quant_state.bitsandbytes__"


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that a checkpoint of bitsandbytes holds quantized (see `easyfn.io.formats.Reader`)."""
    found: dict[str, Packed] = {}
    common = dense_dtype({name: info for name, info in header.items() if not name.endswith(".SCB")})
    for path, source in sources.items():
        if not quantized(source, lambda name: _stored(name, header)):
            continue
        every = [_tensors(name, _stored(name, header), header) for name in source.names]
        names = tuple(name for one in every for name in one)
        make = functools.partial(_make, path, source, [len(one) for one in every], common or at(model, path).dtype)
        found[path] = Packed(names, make)
    return found


def _stored(name: str, header: Mapping[str, Any]) -> str | None:
    for levels in LEVELS:
        if f"{name}.{STATE}{levels}" in header:
            return levels
    # A bias lies beside the same SCB as its weight: the dtype tells them apart.
    return "int8" if _scb(name) in header and name in header and header[name].dtype == np.int8 else None


def _scb(name: str) -> str:
    layer, _, last = name.rpartition(".")
    return f"{layer}.SCB" if last == "weight" else f"{name}.SCB"  # a layer of one's own may have several matrices


def _tensors(name: str, kind: str | None, header: Mapping[str, Any]) -> list[str]:
    if kind == "int8":
        extra = f"{name}_format"
        return [name, _scb(name), *([extra] if extra in header else [])]
    parts = [name, f"{name}.{STATE}{kind}", f"{name}.absmax", f"{name}.quant_map"]
    nested = [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    return parts + (nested if nested[0] in header else [])


def _make(path: str, source: Tensors, counts: list[int], declared: Any, parts: list[np.ndarray], dtype: Any) -> Any:
    """The weight of a slot from the tensors of one matrix, or of several: the experts, or the parts of a fused one."""
    weights, rest = [], list(parts)
    for count in counts:
        mine, rest = rest[:count], rest[count:]
        weights.append(
            _int8(path, mine, dtype or declared) if mine[0].dtype == np.int8 else _four_bit(path, mine, dtype)
        )
    if source.together > 1:
        reason = f"{path}: it joins matrices whose 4-bit blocks cross rows, which no one set of blocks can hold"
        weights = [_by_row(w, reason) for w in weights]
    return join(source, weights)


def _by_row(w: Any, reason: str) -> Any:
    """The same weight with scales of its own for every row, so that rows of several can be joined and cut."""
    if not isinstance(w, NF4):
        return w
    if not aligned(w):
        raise ValueError(reason)
    return w if w.nested is None else replace(w, scales=scales_of(w), nested=None, offset=None)


def _int8(path: str, parts: list[np.ndarray], dtype: Any) -> Int8:
    codes, scb, *order = parts
    if order and int(order[0].reshape(-1)[0]) != 0:
        raise ValueError(
            f"{path}: its int8 weight is tiled for an old GPU (weight_format {int(order[0].reshape(-1)[0])}); only "
            "row order is read"
        )
    return Int8(codes, scb.astype(np.float32).reshape(-1, 1), jnp.dtype(dtype).name)


def _four_bit(path: str, parts: list[np.ndarray], dtype: Any) -> NF4:
    packed, state_bytes, absmax, table, *nested = parts
    state = json.loads(bytes(state_bytes.view(np.uint8).reshape(-1)).decode())
    levels, block, (out, width) = state["quant_type"], state["blocksize"], state["shape"]
    if not np.allclose(table, LEVELS[levels], atol=1e-6):
        raise ValueError(f"{path}: its {levels} table is not bitsandbytes' own; such a checkpoint is not read")
    if width % 2:
        raise ValueError(f"{path}: rows of {width} entries share bytes, which easyfn cannot hold")
    shape = (out, width // block) if width % block == 0 else (1, -(-out * width // block))
    codes = np.ascontiguousarray(packed).reshape(-1).view(np.uint8).reshape(out, width // 2)
    name = jnp.dtype(dtype or state["dtype"]).name
    fixed = {"block": block, "levels": levels, "dtype": name}
    if not nested:
        return NF4(codes, absmax.astype(np.float32).reshape(shape), **fixed)
    scale, code = nested
    offset = np.full((1, 1), state["nested_offset"], np.float32)
    if state["nested_blocksize"] == NESTED and np.allclose(code, dynamic_map(), atol=1e-6):
        return NF4(codes, absmax.reshape(shape), scale.reshape(1, -1), offset, **fixed)
    # Another table for the scales: they become plain ones.
    each = np.repeat(scale, state["nested_blocksize"])[: absmax.size]
    return NF4(codes, (code[absmax.reshape(-1)] * each + offset[0]).astype(np.float32).reshape(shape), **fixed)


def write(source: Tensors, weight: Any) -> dict[str, Any]:
    """The tensors that hold a weight, or one layer of a stacked one (see `easyfn.io.formats.Writer`)."""
    experts = len(source.shape) == 3 and not source.experts  # all in one tensor: their rows are those of one matrix
    if (count := source.together) > 1 or experts:
        what = f"in {count} pieces" if count > 1 else "with the rows of all experts in one"
        crossed = f"{source.path}: the file holds it {what}, and its blocks of 4 bits cross them; use ef.dequantize"
        weight = _by_row(weight, crossed)
    pieces = cut(source, weight)
    out: dict[str, Any] = {}
    for name, whole in zip(source.names, pieces, strict=True):
        piece = flat(source, whole)
        out |= _int8_tensors(name, piece) if isinstance(piece, Int8) else _four_bit_tensors(name, piece)
    return out


def _int8_tensors(name: str, w: Int8) -> dict[str, Any]:
    return {name: w.codes, _scb(name): w.scales.reshape(-1), f"{name}_format": np.zeros((), np.uint8)}


def _four_bit_tensors(name: str, w: NF4) -> dict[str, Any]:
    state: dict[str, Any] = {"quant_type": w.levels, "blocksize": w.block, "dtype": w.dtype}
    state["shape"] = [w.codes.shape[0], 2 * w.codes.shape[1]]
    out = {
        name: w.codes.reshape(-1, 1),
        f"{name}.absmax": w.scales.reshape(-1),
        f"{name}.quant_map": LEVELS[w.levels].copy(),
    }
    if w.nested is not None:
        state |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": float(w.offset.reshape(()))}  # type: ignore[union-attr]
        out |= {f"{name}.nested_absmax": w.nested.reshape(-1), f"{name}.nested_quant_map": dynamic_map().copy()}
    out[f"{name}.{STATE}{w.levels}"] = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return out


def settings(model: Any) -> dict[str, Any]:
    """The `quantization_config` of a model, as transformers writes it.

    Raises `ValueError` where transformers could not read the model: 8 and 4 bits in one, or a quantized embedding.
    """
    packed, plain = [], []
    for found in find_slots(model, ("linear", "experts", "head", "router", "embedding")):
        weights = [node for _, node in nodes(found.weight) if format_of(node) is not None]
        if weights and found.slot.role == "embedding":
            raise ValueError(
                f"save: {found.path} is {format_of(weights[0])}, and bitsandbytes has no embeddings on disk. Leave "
                "it out of the pattern, or save ef.dequantize(model)."
            )
        if weights:
            packed.append(weights[0])
        elif found.slot.role != "embedding":
            plain.append(found.layer)
    if len({type(w) for w in packed}) > 1:
        names = sorted({str(format_of(w)) for w in packed})
        raise ValueError(
            f"save: the model mixes {', '.join(names)}; transformers reads 4 or 8 bits, not both in one model. "
            "Take one of them, or int4 beside 8bit, which compressed-tensors holds; or save ef.dequantize(model)."
        )
    # The same layers, from whichever prefix transformers looks: it also compares ends of names.
    skip = ["lm_head", *(p.removeprefix("model.") for layer in plain for p in expand(layer))]
    common = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": list(dict.fromkeys(skip))}
    if isinstance(packed[0], Int8):
        return common | {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 0.0}
    return common | {
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": packed[0].levels,
        "bnb_4bit_use_double_quant": packed[0].nested is not None,
        "bnb_4bit_compute_dtype": packed[0].dtype,
        "bnb_4bit_quant_storage": "uint8",
    }


def refuses(weight: Any) -> str | None:
    """Why the layout cannot hold a weight."""
    if isinstance(weight, Int8) and (weight.activations is not None or weight.smooth is not None):
        return "has no place for how the input is rounded or smoothed"
    return None


register("bitsandbytes", reader=read, writer=write, types=(Int8, NF4), settings=settings, refuses=refuses)
