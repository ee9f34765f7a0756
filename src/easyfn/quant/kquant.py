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
from .product import FEW, by_blocks, inner, register_format
from .thin import Thin, call


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


class Layout(NamedTuple):
    """How the entries of a block lie in `codes` and `high`: chunk by chunk, of which every plane has as many.

    Beside each other are the entries `k` of all planes of a chunk: `planes * bits / 8` bytes of `codes` and one of `high`.
    """

    chunks: int
    planes: int
    bits: int  # of an entry in `codes`; `8 / planes` are in `high`, if there is one
    middle: int = 0  # the code that stands for 0
    groups: int = 1  # with a scale each, of one plane of a chunk
    turns: bool = False  # neighbouring planes lie in neighbouring bytes, not in one


LAYOUTS = {
    "Q4_1": Layout(1, 2, 4),
    "Q5_1": Layout(1, 8, 4, turns=True),
    "Q2_K": Layout(2, 4, 2, groups=2),
    "Q3_K": Layout(1, 8, 2, middle=4, groups=2),
    "Q4_K": Layout(4, 2, 4),
    "Q5_K": Layout(1, 8, 4),
    "Q6_K": Layout(2, 4, 4, middle=32, groups=2, turns=True),
}


class KQuant(eqx.Module):
    """`w = scale * scales * codes - minimum * mins`, the parts of llama.cpp's blocks side by side, row by row.

    A row has `in / 256` blocks (`in / 32` of Q4_1 and Q5_1), and each array its part of one block after the other:

    - `codes`, `high`: the low and the high bits of the entries, uint8 `(..., out, bytes)`: the file's bytes, in an order that
      a processor reads in one go (see `Layout`).
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
    layout = LAYOUTS[kind]
    if (beside := layout.planes * layout.bits // 8) > 1:
        parts["codes"] = _swapped(parts["codes"], layout.chunks, beside, -1)
    if kind == "Q5_1":
        parts["high"] = _turned(parts["high"], (8, 4))
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
    layout = LAYOUTS[w.kind]
    if (beside := layout.planes * layout.bits // 8) > 1:
        parts["codes"] = _swapped(parts["codes"], layout.chunks, -1, beside)
    if w.kind == "Q5_1":
        parts["high"] = _turned(parts["high"], (4, 8))
    each = [np.ascontiguousarray(part).view(np.uint8) for part in parts.values()]
    return np.concatenate(each, axis=-1).reshape(*blocks[:-1], -1)


def _swapped(codes: np.ndarray, *sizes: int) -> np.ndarray:
    """The bytes of each chunk `(chunks, a, b)` as `(chunks, b, a)`."""
    return np.swapaxes(codes.reshape(*codes.shape[:-1], *sizes), -1, -2).reshape(codes.shape)


def _turned(high: np.ndarray, bits: tuple[int, int]) -> np.ndarray:
    """The 32 bits of each block of Q5_1, rows and columns exchanged."""
    each = np.unpackbits(high, axis=-1, bitorder="little")
    return np.packbits(_swapped(each, *bits), axis=-1, bitorder="little")


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


def _codes(w: KQuant, plane: int) -> jax.Array:
    """The codes of a plane, `(..., out, blocks, chunks, entries)`."""
    layout, lead = LAYOUTS[w.kind], (*w.scale.shape, LAYOUTS[w.kind].chunks)
    beside = layout.planes * layout.bits // 8
    if layout.turns:
        slot, byte = divmod(plane, beside)
    else:
        byte, slot = divmod(plane, 8 // layout.bits)
    codes = w.codes.reshape(*lead, -1, beside)[..., byte] >> layout.bits * slot & (2**layout.bits - 1)
    if w.high is None:
        return codes
    bits = 8 // layout.planes
    return codes | (w.high.reshape(*lead, -1) >> bits * plane & (2**bits - 1)) << layout.bits


def _planes(w: KQuant) -> list[jax.Array]:
    """The dense weight in pieces `(..., out, in / planes)` that need no interleaving, float32.

    As `gguf.quants.dequantize` has it: the products have at most 24 bits, so that neither their order nor a fused multiply
    and add changes them."""
    layout, lead = LAYOUTS[w.kind], w.scale.shape
    scale = lax.stop_gradient(w.scale).astype(jnp.float32).reshape(*lead, 1, 1, 1)
    minimum = None if w.minimum is None else lax.stop_gradient(w.minimum).astype(jnp.float32).reshape(scale.shape)

    def of(plane: int, whole: jax.Array, part: jax.Array) -> jax.Array:
        each = part.reshape(*lead, layout.chunks, layout.planes, layout.groups, 1)[..., plane, :, :]
        return whole * each.astype(jnp.float32)

    def one(plane: int) -> jax.Array:
        codes = _codes(w, plane)
        codes = codes.reshape(*codes.shape[:-1], layout.groups, -1).astype(jnp.float32) - layout.middle
        scales, mins = (w.scales & 15, w.scales >> 4) if w.kind == "Q2_K" else (w.scales, w.mins)
        full = codes * (scale if scales is None else of(plane, scale, scales))
        if minimum is not None:
            full = full + minimum if mins is None else full - of(plane, minimum, mins)
        return full.reshape(*lead[:-1], -1)

    return [one(plane) for plane in range(layout.planes)]


def _columns(w: KQuant, rows: jax.Array) -> list[jax.Array]:
    """The columns of `rows`, `(m, in)`, that belong to each of `_planes(w)`."""
    layout = LAYOUTS[w.kind]
    cut = rows.reshape(len(rows), w.scale.shape[-1] * layout.chunks, layout.planes, -1)
    return [cut[:, :, plane].reshape(len(rows), -1) for plane in range(layout.planes)]


def values(w: KQuant) -> jax.Array:
    """The dense weight in float32."""
    layout, planes = LAYOUTS[w.kind], _planes(w)
    cut = [plane.reshape(*w.scale.shape, layout.chunks, -1) for plane in planes]
    return jnp.stack(cut, axis=-2).reshape(shape_of(w))


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
def _pieces(w: KQuant, rows: jax.Array) -> jax.Array:
    # A few rows cost nothing beside the unpacking, and to round what is unpacked to 16 bits costs more than it saves.
    rows = rows.astype(jnp.float32) if len(rows) <= FEW else rows
    each = zip(_columns(w, rows), _planes(w), strict=True)
    return functools.reduce(jnp.add, [inner(part, plane.astype(rows.dtype)) for part, plane in each])


@by_blocks
def _whole(w: KQuant, rows: jax.Array) -> jax.Array:
    return inner(rows, values(w).astype(rows.dtype))


def _product(w: KQuant, rows: jax.Array) -> jax.Array:
    return lax.platform_dependent(w, rows, cpu=_pieces, default=_whole)


def _fits(w: KQuant) -> bool:
    return w.kind != "Q5_1"


def _thin(w: KQuant, rows: jax.Array) -> jax.Array:
    if w.kind == "Q4_1":
        levels = np.arange(16, dtype=np.float32)
        return call("nibbles", shape_of(w), rows, w.codes, w.scale, -w.minimum, pairs=False, levels=levels)
    absent = {"minimum": jnp.float16}
    names = ("codes", "high", "scales", "mins", "scale", "minimum")
    parts = [getattr(w, name) for name in names]
    parts = [
        jnp.zeros((0, 0), absent.get(name, jnp.uint8)) if part is None else part
        for name, part in zip(names, parts, strict=True)
    ]
    return call("blocks", shape_of(w), rows, *parts, kind=np.int64(w.kind[1]))


register_format(KQuant, _product, thin=Thin(_fits, _thin))
