"""`KQuant`: llama.cpp's blocks with scales of scales (Q2_K to Q6_K) or a minimum (Q4_1, Q5_1), in their own bytes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.weight import axes_of, dense, format_of, requantize, shape_of
from .product import by_blocks, inner, register_format


class Block(NamedTuple):
    """A kind of block: its entries, and the bytes of its parts in the order of the file."""

    entries: int
    parts: tuple[tuple[str, int], ...]


BLOCKS = {
    "Q4_1": Block(32, (("scale", 2), ("minimum", 2), ("codes", 16))),
    "Q5_1": Block(32, (("scale", 2), ("minimum", 2), ("high", 4), ("codes", 16))),
    "Q2_K": Block(256, (("scales", 16), ("codes", 64), ("scale", 2), ("minimum", 2))),
    "Q3_K": Block(256, (("high", 32), ("codes", 64), ("scales", 12), ("scale", 2))),
    "Q4_K": Block(256, (("scale", 2), ("minimum", 2), ("scales", 12), ("codes", 128))),
    "Q5_K": Block(256, (("scale", 2), ("minimum", 2), ("scales", 12), ("high", 32), ("codes", 128))),
    "Q6_K": Block(256, (("codes", 128), ("high", 64), ("scales", 16), ("scale", 2))),
}


class KQuant(eqx.Module):
    """`w = scale * scales * codes - minimum * mins`, the parts of llama.cpp's blocks side by side, row by row.

    A row has `in / 256` blocks (`in / 32` of Q4_1 and Q5_1), and each array its part of one block after the other:

    - `codes`, `high`: the low and the high bits of the entries as the file has them, uint8 `(..., out, bytes)`.
    - `scale`, `minimum`: of whole blocks, float16 `(..., out, blocks)`.
    - `scales`, `mins`: of the 8 or 16 groups of a block, a byte each, `(..., out, groups)`: the 6 bits of Q3_K, Q4_K and
      Q5_K, int8 where they are signed. Of Q2_K `scales` has both, 4 bits each.

    `kind` is ggml's name, `"Q4_K"`; the layout is that of ggml-common.h. It is read from `.gguf` files and written back to
    the byte.
    """

    codes: Any
    scale: Any
    minimum: Any = None
    scales: Any = None
    mins: Any = None
    high: Any = None
    kind: str = eqx.field(static=True, default="Q4_K")
    dtype: str = eqx.field(static=True, default="float32")


def from_blocks(raw: np.ndarray, kind: str, dtype: Any = "float32") -> KQuant:
    """The weight of the bytes of a file: uint8 `(..., out, blocks * bytes of a block)`."""
    parts: dict[str, Any] = {}
    lead, size, at = raw.shape[:-1], sum(n for _, n in BLOCKS[kind].parts), 0
    blocks = raw.reshape(*lead, -1, size)
    for name, count in BLOCKS[kind].parts:
        parts[name] = np.ascontiguousarray(blocks[..., at : at + count])
        at += count
    if kind in ("Q4_K", "Q5_K"):
        parts["scales"], parts["mins"] = _unpack_scales(parts["scales"])
    elif kind == "Q3_K":
        parts["scales"] = _unpack_signed(parts["scales"])
    elif kind == "Q6_K":
        parts["scales"] = parts["scales"].view(np.int8)
    for name in {"scale", "minimum"} & set(parts):
        parts[name] = parts[name].view(np.float16)
    flat = {name: part.reshape(*lead, -1) for name, part in parts.items()}
    return KQuant(**flat, kind=kind, dtype=jnp.dtype(dtype).name)


def to_blocks(w: KQuant) -> np.ndarray:
    """The bytes of a file: the inverse of `from_blocks`."""
    blocks = w.scale.shape
    parts = {name: np.asarray(getattr(w, name)).reshape(*blocks, -1) for name, _ in BLOCKS[w.kind].parts}
    if w.kind in ("Q4_K", "Q5_K"):
        parts["scales"] = _pack_scales(parts["scales"], np.asarray(w.mins).reshape(*blocks, -1))
    elif w.kind == "Q3_K":
        parts["scales"] = _pack_signed(parts["scales"])
    each = [np.ascontiguousarray(part).view(np.uint8) for part in parts.values()]
    return np.concatenate(each, axis=-1).reshape(*blocks[:-1], -1)


def _unpack_scales(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight mins of 6 bits in 12 bytes (Q4_K, Q5_K)."""
    low, high, both = raw[..., :4], raw[..., 4:8], raw[..., 8:]
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 2) & 48)], axis=-1)
    return scales, np.concatenate([high & 63, (both >> 4) | ((high >> 2) & 48)], axis=-1)


def _pack_scales(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    low, high = (part[..., :4] | ((part[..., 4:] >> 4) << 6) for part in (scales, mins))
    return np.concatenate([low, high, (scales[..., 4:] & 15) | ((mins[..., 4:] & 15) << 4)], axis=-1)


def _unpack_signed(raw: np.ndarray) -> np.ndarray:
    """Sixteen scales of 6 bits in 12 bytes, less 32 (Q3_K)."""
    low = np.concatenate([raw[..., :8] & 15, raw[..., :8] >> 4], axis=-1)
    high = np.concatenate([(raw[..., 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return (low | (high << 4)).astype(np.int8) - np.int8(32)


def _pack_signed(scales: np.ndarray) -> np.ndarray:
    whole = (scales + np.int8(32)).astype(np.uint8)
    low = (whole[..., :8] & 15) | ((whole[..., 8:] & 15) << 4)
    high = sum((whole[..., 4 * k : 4 * k + 4] >> 4) << (2 * k) for k in range(4))
    return np.concatenate([low, np.asarray(high, np.uint8)], axis=-1)


def _cut(part: jax.Array, chunk: int, shifts: tuple[int, ...], mask: int) -> jax.Array:
    """Chunks of `chunk` bytes, each as often as there are shifts: `(..., chunks, shifts, chunk)`."""
    shift = jnp.asarray(shifts, jnp.uint8)[:, None]
    shift = shift.reshape((1,) * part.ndim + shift.shape)
    return (part.reshape(*part.shape[:-1], -1, 1, chunk) >> shift) & jnp.uint8(mask)


def _parts(w: KQuant) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Codes `(..., groups, entries)`, and of every group its scale and its minimum (or none), float32."""
    scale = lax.stop_gradient(w.scale).astype(jnp.float32)[..., None]
    minimum = None if w.minimum is None else lax.stop_gradient(w.minimum).astype(jnp.float32)[..., None]
    lead = w.codes.shape[:-1]

    def groups(part: jax.Array) -> jax.Array:
        return part.astype(jnp.float32).reshape(*w.scale.shape, -1)

    def flat(part: jax.Array) -> jax.Array:
        return part.reshape(*lead, -1)

    if w.kind in ("Q4_1", "Q5_1"):
        codes = _cut(w.codes, 16, (0, 4), 15).reshape(*lead, -1, 32)
        if w.high is not None:
            bits = (w.high[..., None] >> jnp.arange(8, dtype=jnp.uint8).reshape((1,) * w.high.ndim + (8,))) & 1
            codes = codes | (bits.reshape(codes.shape) << 4)
        return codes, flat(scale), None if minimum is None else flat(-minimum)
    if w.kind in ("Q4_K", "Q5_K"):
        codes = _cut(w.codes, 32, (0, 4), 15).reshape(*lead, -1, 32)
        if w.high is not None:
            codes = codes | (_cut(w.high, 32, tuple(range(8)), 1).reshape(codes.shape) << 4)
        return codes, flat(scale * groups(w.scales)), flat(minimum * groups(w.mins))  # type: ignore[operator]
    if w.kind == "Q2_K":
        codes = _cut(w.codes, 32, (0, 2, 4, 6), 3).reshape(*lead, -1, 16)
        return codes, flat(scale * groups(w.scales & 15)), flat(minimum * groups(w.scales >> 4))  # type: ignore[operator]
    if w.kind == "Q3_K":
        codes = _cut(w.codes, 32, (0, 2, 4, 6), 3).reshape(*lead, -1, 16).astype(jnp.int8)
        absent = _cut(w.high, 32, tuple(range(8)), 1).reshape(codes.shape).astype(jnp.int8) ^ 1
        return codes - (absent << 2), flat(scale * groups(w.scales)), None
    codes = _cut(w.codes, 64, (0, 4), 15).reshape(*lead, -1, 16)
    codes = codes | (_cut(w.high, 32, (0, 2, 4, 6), 3).reshape(codes.shape) << 4)
    return codes.astype(jnp.int8) - 32, flat(scale * groups(w.scales)), None


def values(w: KQuant) -> jax.Array:
    """The dense weight in float32, as `gguf.quants.dequantize` has it: its products have at most 24 bits, so that
    neither their order nor a fused multiply and add changes them."""
    codes, scale, minimum = _parts(w)
    full = codes.astype(jnp.float32) * scale[..., None]
    if minimum is not None:
        full = full - minimum[..., None]
    return full.reshape(shape_of(w))


@shape_of.register(KQuant)
def _(w: KQuant) -> tuple[int, ...]:
    return (*w.scale.shape[:-1], w.scale.shape[-1] * BLOCKS[w.kind].entries)


@format_of.register(KQuant)
def _(w: KQuant) -> str:
    return w.kind.lower()


@requantize.register(KQuant)
def _(w: KQuant, new: jax.Array) -> KQuant:
    raise ValueError(
        f"easyfn reads and writes {format_of(w)}, and does not round to it: llama.cpp does. Start from "
        "ef.dequantize(model), or fold adapters in with ef.merge_lora(model, dequantize=True): both make plain arrays"
    )


@axes_of.register(KQuant)
def _(w: KQuant, axes: tuple[str | None, ...]) -> Any:
    return jax.tree.map(lambda _: axes, w)


@dense.register(KQuant)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: KQuant) -> jax.Array:
    return values(w).astype(w.dtype)


@by_blocks
def _product(w: KQuant, rows: jax.Array) -> jax.Array:
    return inner(rows, values(w).astype(rows.dtype))


register_format(KQuant, _product)
