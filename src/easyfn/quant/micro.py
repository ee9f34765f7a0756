"""`Micro`: floats of 4 or 8 bits in small blocks with a shared scale: mxfp4, mxfp8 (OCP) and nvfp4 (NVIDIA)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.weight import axes_of, dense, format_of, requantize, shape_of
from .config import QuantConfig, method
from .fp8 import TOP, divide, from_e4m3, to_e4m3
from .product import by_blocks, inner, register_format, replace

# The eight magnitudes of e2m1, in the order of their codes; the fourth bit is the sign.
LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


class Kind(NamedTuple):
    """What a name stands for: bits of an entry, entries that share a scale, the exponent of the largest entry."""

    bits: int
    block: int
    exponent: int


KINDS = {"mxfp4": Kind(4, 32, 2), "mxfp8": Kind(8, 32, 8), "nvfp4": Kind(4, 16, 2)}


class Micro(eqx.Module):
    """`w = codes * scales`, a scale for every 32 (`mxfp4`, `mxfp8`) or 16 (`nvfp4`) entries of a row.

    - `codes`: e2m1 as uint8 `(..., out, in / 2)`, two a byte, the first in the low bits; of `mxfp8` the bytes of
      float8_e4m3fn, `(..., out, in)`.
    - `scales`: uint8 `(..., out, in / 32)`, a power of two as its exponent plus 127 (e8m0); of `nvfp4` the bytes of
      float8_e4m3fn, `(..., out, in / 16)`, to be divided by
    - `divisor`: float32 `(..., 1, 1)` or, where matrices were joined, `(..., out, 1)`; otherwise `None`.

    Formats: OCP Microscaling Formats (MX) 1.0; NVIDIA's NVFP4. All arrays are the bytes of the files.

    ```python
    import jax, easyfn as ef
    w = ef.quant.to_micro(jax.random.normal(jax.random.key(0), (8, 64)), "nvfp4")
    assert w.codes.shape == (8, 32) and w.scales.shape == (8, 4) and w.divisor.shape == (1, 1)
    assert ef.dense(w).shape == ef.shape_of(w) == (8, 64)
    ```
    """

    codes: Any
    scales: Any
    divisor: Any = None
    kind: str = eqx.field(static=True, default="mxfp4")
    dtype: str = eqx.field(static=True, default="float32")


def to_micro(w: Any, kind: str = "mxfp4") -> Micro:
    """Rounds a dense array `(..., out, in)` to `"mxfp4"`, `"mxfp8"` or `"nvfp4"`, code for code as `compressed_tensors`.

    Raises `ValueError` for rows that the blocks do not divide.

    ```python
    import jax.numpy as jnp, easyfn as ef
    w = ef.quant.to_micro(jnp.linspace(-3, 3, 32)[None])
    assert w.scales.tolist() == [[127 - 1]] and ef.dense(w)[0, :2].tolist() == [-3, -3]
    ```
    """
    bits, block, exponent = KINDS[kind]
    if w.shape[-1] % block:
        raise ValueError(
            f"{kind}: blocks of {block} do not divide rows of {w.shape[-1]} entries: leave such weights out by the "
            "pattern, or choose fp8 or 8bit, whose groups are whole rows"
        )
    cut = w.astype(jnp.float32).reshape(*w.shape[:-1], -1, block)
    top = jnp.max(jnp.abs(cut), axis=-1)
    divisor = None
    if kind == "nvfp4":
        # The largest entry of the matrix becomes the largest e2m1 times the largest e4m3.
        largest = jnp.max(top, axis=(-2, -1), keepdims=True)
        divisor = TOP * 6.0 / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
        divisor = jnp.where(jnp.isfinite(divisor), divisor, 1.0)
        scales = to_e4m3(divide(top, 6.0) * divisor)
        scales = jnp.where(scales == 0, to_e4m3(jnp.float32(0.125)), scales)
    else:
        # The exponent of the block's largest entry, which counts as the next power of two from 1.75 on.
        bumped = lax.bitcast_convert_type(top, jnp.int32) + (1 << 21)
        scales = jnp.clip((bumped >> 23) - exponent, 0, 254).astype(jnp.uint8)
    ratio = jnp.where(cut == 0, cut, cut / _scale(scales, divisor)[..., None])
    codes = _e2m1(ratio) if bits == 4 else to_e4m3(ratio)
    return Micro(codes.reshape(*w.shape[:-1], -1), scales, divisor, kind, jnp.dtype(w.dtype).name)


def _e2m1(x: jax.Array) -> jax.Array:
    """Codes of the nearest levels, two a byte; between two levels the even code."""
    size = jnp.abs(x)
    steps = [  # a code is the number of steps below it; every second step keeps its own middle below
        size > middle if n % 2 == 0 else size >= middle for n, middle in enumerate((LEVELS[:-1] + LEVELS[1:]) / 2)
    ]
    codes = functools.reduce(jnp.add, [step.astype(jnp.uint8) for step in steps]) | ((x < 0).astype(jnp.uint8) << 3)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def _scale(scales: jax.Array, divisor: Any) -> jax.Array:
    """The scales in float32."""
    if divisor is not None:
        return from_e4m3(scales) / divisor
    return lax.bitcast_convert_type(scales.astype(jnp.int32) << 23, jnp.float32)


def _micro(name: str, w: Any, cfg: QuantConfig) -> Micro:
    cfg.refuse("group_size", "double_quant", "block")
    return to_micro(w, name)


for _name in KINDS:
    method(_name)(functools.partial(_micro, _name))


@shape_of.register(Micro)
def _(w: Micro) -> tuple[int, ...]:
    return (*w.codes.shape[:-1], w.codes.shape[-1] * (8 // KINDS[w.kind].bits))


@format_of.register(Micro)
def _(w: Micro) -> str:
    return w.kind


@requantize.register(Micro)
def _(w: Micro, new: jax.Array) -> Micro:
    fresh = to_micro(new, w.kind)
    return replace(w, codes=fresh.codes, scales=fresh.scales, divisor=fresh.divisor)


@axes_of.register(Micro)
def _(w: Micro, axes: tuple[str | None, ...]) -> Any:
    joined = w.divisor is not None and w.divisor.shape[-2] > 1
    divisor = None if w.divisor is None else (*axes[:-2], axes[-2] if joined else None, None)
    return replace(w, codes=axes, scales=axes, divisor=divisor)


def _level(code: jax.Array) -> jax.Array:
    """What a 4-bit code stands for, in float32: its bits are those of a float16 of 2**-14 times the value."""
    bits = code.astype(jnp.uint16)
    half = lax.bitcast_convert_type(((bits & 8) << 12) | ((bits & 7) << 9), jnp.float16)
    return half.astype(jnp.float32) * 2.0**14


def planes(w: Micro) -> list[jax.Array]:
    """The dense values, float32: of the even and of the odd columns for 4 bits, or of all of them.

    To interleave two planes costs more than to unpack them: a product splits its small input instead.
    """
    scales = _scale(w.scales, None if w.divisor is None else lax.stop_gradient(w.divisor))
    if KINDS[w.kind].bits == 8:
        entries = [from_e4m3(w.codes)]
    else:
        entries = [_level(w.codes & 15), _level(w.codes >> 4)]
    each = jnp.repeat(scales, entries[0].shape[-1] // scales.shape[-1], axis=-1)
    return [plane * each for plane in entries]


@dense.register(Micro)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: Micro) -> jax.Array:
    return jnp.stack(planes(w), axis=-1).reshape(shape_of(w)).astype(w.dtype)


def _ready(w: Micro) -> Micro:
    """The weight as a product takes it: the divisor for every row, so that it can be cut into blocks of them."""
    return w if w.divisor is None else replace(w, divisor=jnp.broadcast_to(w.divisor, (w.codes.shape[0], 1)))


@by_blocks
def _product(w: Micro, rows: jax.Array) -> jax.Array:
    each = planes(w)
    parts = [inner(rows[:, n :: len(each)], plane.astype(rows.dtype)) for n, plane in enumerate(each)]
    return functools.reduce(jnp.add, parts)


def _back(w: Micro, g: jax.Array) -> jax.Array:
    parts = [inner(g, jnp.swapaxes(plane.astype(g.dtype), 0, 1)) for plane in planes(w)]
    return jnp.stack(parts, axis=-1).reshape(g.shape[0], -1)


def _table_rows(w: Micro, ids: jax.Array) -> Micro:
    codes, scales = (jnp.take(part, ids, axis=0, mode="clip") for part in (w.codes, w.scales))
    divisor = w.divisor
    if divisor is not None and divisor.shape[-2] > 1:
        divisor = jnp.take(divisor, ids, axis=0, mode="clip")
    return replace(w, codes=codes, scales=scales, divisor=divisor)


register_format(Micro, _product, _back, rows=_table_rows, ready=_ready)
