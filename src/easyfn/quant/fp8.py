"""`FP8`: weights as 8-bit floats (e4m3), with a scale for the tensor, for each output channel or for each block."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.weight import axes_of, dense, format_of, requantize, shape_of
from .config import QuantConfig, method
from .product import by_blocks, inner, register_format, replace

E4M3 = jnp.float8_e4m3fn
TOP = 448.0  # the largest e4m3
# Rows and columns that share a scale; 0 stands for all of them.
BLOCKS = {"tensor": (0, 0), "channel": (1, 0), "128x128": (128, 128)}
# What `activations` may say, and how many columns of an input row share a scale (0: all of them).
ACTIVATIONS = {"static": 0, "token": 0, "token/128": 128}


class FP8(eqx.Module):
    """`w = codes * scales`, with a scale for every block of the weight.

    - `codes`: uint8 `(..., out, in)`, the bytes of float8_e4m3fn. (XLA on CPU does whatever it does with 8-bit floats,
      slices of a stack included, by way of a 16-bit copy of the whole; of bytes it makes none.)
    - `scales`: float32 `(..., out / rows, in / columns)` for blocks of `block = (rows, columns)`, rounded up: the last
      blocks may be smaller. A 0 in `block` stands for all rows or columns.
    - `input_scale`: float32 `(..., 1, 1)` or `None`, the scale of the input where `activations` is `"static"`.

    `activations` says how a product rounds its input to e4m3: `None` not at all, `"token"` with a scale for each row,
    `"token/128"` for each 128 columns of a row, `"static"` with the scale that the checkpoint holds. Gradients of the
    input pass straight through the rounding.

    ```python
    import jax, easyfn as ef
    w = ef.quant.to_fp8(jax.random.normal(jax.random.key(0), (256, 384)), "128x128")
    assert w.scales.shape == (2, 3) and ef.format_of(w) == "fp8/128x128"
    assert ef.dense(w).shape == ef.shape_of(w) == (256, 384)
    ```
    """

    codes: Any
    scales: Any
    input_scale: Any = None
    block: tuple[int, int] = eqx.field(static=True, default=(1, 0))
    activations: str | None = eqx.field(static=True, default=None)
    dtype: str = eqx.field(static=True, default="float32")


def to_fp8(w: Any, block: str | tuple[int, int] = "channel") -> FP8:
    """Rounds a dense array `(..., out, in)` to e4m3, scaled so that the largest entry of every block becomes 448.

    `block` is `"tensor"`, `"channel"`, `"128x128"` or a pair of rows and columns. Codes and scales are those of
    `compressed_tensors` for tensor and channel, and those of transformers' `FineGrainedFP8` for blocks.

    ```python
    import jax.numpy as jnp, easyfn as ef
    w = ef.quant.to_fp8(jnp.array([[448.0, 1.0], [2.0, -4.0]]))
    assert w.scales[0, 0] == 1 and jnp.allclose(ef.dense(w), jnp.array([[448.0, 1.0], [2.0, -4.0]]))
    ```
    """
    rows, columns = block = BLOCKS[block] if isinstance(block, str) else block
    wide = w.astype(jnp.float32)
    top = _largest(jnp.abs(wide), block)
    if rows > 1 and columns > 1:
        # As they compute it: the scale is the reciprocal of what the weight is multiplied with, rounded twice.
        into = jnp.where(top > 0, lax.optimization_barrier(1 / top) * TOP, 1.0)
        scales = 1 / lax.optimization_barrier(into)
        codes = wide * spread(into, block, wide.shape)
    else:
        scales = divide(top, TOP)
        scales = jnp.where(scales > 0, scales, jnp.finfo(jnp.float32).eps)
        codes = wide / spread(scales, block, wide.shape)
    return FP8(to_e4m3(codes), scales, block=block, dtype=jnp.dtype(w.dtype).name)


def to_e4m3(x: jax.Array) -> jax.Array:
    """The nearest e4m3 as bytes; beyond the largest, that."""
    return lax.bitcast_convert_type(jnp.clip(x, -TOP, TOP).astype(E4M3), jnp.uint8)


def from_e4m3(codes: jax.Array) -> jax.Array:
    """What the bytes of e4m3 stand for, in float32."""
    return lax.bitcast_convert_type(codes, E4M3).astype(jnp.float32)


def divide(x: jax.Array, number: float) -> jax.Array:
    """`x / number`, rounded once: XLA would multiply with the reciprocal of a constant, and the last bit be another."""
    return x / (x * 0 + number)


def _largest(magnitudes: jax.Array, block: tuple[int, int]) -> jax.Array:
    """The largest entry of every block, `(..., out / rows, in / columns)`."""
    out, width = magnitudes.shape[-2:]
    rows, columns = block[0] or out, block[1] or width
    down, across = -(-out // rows), -(-width // columns)
    lead = magnitudes.shape[:-2]
    pad = [(0, 0)] * len(lead) + [(0, down * rows - out), (0, across * columns - width)]
    return jnp.max(jnp.pad(magnitudes, pad).reshape(*lead, down, rows, across, columns), axis=(-3, -1))


def spread(scales: Any, block: tuple[int, int], shape: tuple[int, ...]) -> Any:
    """The scales of the rows and columns of a weight: what stands for a whole axis stays one, to be broadcast."""
    for axis in (-2, -1):
        if block[axis] > 1 and scales.shape[axis] > 1:
            each = jnp.repeat(scales, block[axis], axis=axis)
            scales = lax.slice_in_dim(each, 0, shape[axis], axis=each.ndim + axis)
    return scales


@method("fp8")
def _(w: Any, cfg: QuantConfig) -> FP8:
    cfg.refuse("group_size", "double_quant")
    block = "channel" if cfg.block is None else cfg.block
    if block not in BLOCKS:
        raise ValueError(f"fp8: block must be one of {', '.join(map(repr, BLOCKS))}, not {block!r}")
    return to_fp8(w, block)


@shape_of.register(FP8)
def _(w: FP8) -> tuple[int, ...]:
    return tuple(w.codes.shape)


@format_of.register(FP8)
def _(w: FP8) -> str:
    name = next((n for n, block in BLOCKS.items() if block == w.block), f"{w.block[0]}x{w.block[1]}")
    return f"fp8/{name}" + (f"+a8/{w.activations}" if w.activations else "")


@requantize.register(FP8)
def _(w: FP8, new: jax.Array) -> FP8:
    fresh = to_fp8(new, w.block)
    return replace(w, codes=fresh.codes, scales=fresh.scales)


@axes_of.register(FP8)
def _(w: FP8, axes: tuple[str | None, ...]) -> Any:
    down, across = w.scales.shape[-2:]
    scales = (*axes[:-2], axes[-2] if down > 1 else None, axes[-1] if across > 1 else None)
    point = None if w.input_scale is None else (*axes[:-2], None, None)
    return replace(w, codes=axes, scales=scales, input_scale=point)


@dense.register(FP8)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: FP8) -> jax.Array:
    return _values(w).astype(w.dtype)


def _values(w: FP8) -> jax.Array:
    return from_e4m3(w.codes) * spread(lax.stop_gradient(w.scales), w.block, w.codes.shape)


def round_rows(rows: jax.Array, activations: str | None, scale: Any = None) -> jax.Array:
    """`rows`, `(m, in)`, as a product that rounds its input sees them (see [`easyfn.quant.FP8`][])."""
    if activations is None:
        return rows
    wide = rows.astype(jnp.float32)
    if activations != "static":
        cut = wide.reshape(rows.shape[0], -1, ACTIVATIONS[activations] or rows.shape[1])
        scale = divide(jnp.max(jnp.abs(cut), axis=-1, keepdims=True), TOP)
        scale = jnp.where(scale > 0, scale, jnp.finfo(jnp.float32).eps)
        wide = cut
    rounded = from_e4m3(to_e4m3(wide / scale)) * scale
    return rounded.reshape(rows.shape).astype(rows.dtype)


def _ready(w: FP8) -> FP8:
    """The weight as a product takes it: every part with the rows of the weight, so that it can be cut into blocks."""
    out = w.codes.shape[0]
    scales = spread(w.scales, (w.block[0], 0), w.codes.shape)
    scales = jnp.broadcast_to(scales, (out, scales.shape[1]))
    point = None if w.input_scale is None else jnp.broadcast_to(w.input_scale, (out, 1))
    return replace(w, scales=scales, input_scale=point, block=(1, w.block[1]))


@by_blocks
def _product(w: FP8, rows: jax.Array) -> jax.Array:
    point = None if w.input_scale is None else w.input_scale[:1]
    return inner(round_rows(rows, w.activations, point), _values(w).astype(rows.dtype))


def _table_rows(w: FP8, ids: jax.Array) -> FP8:
    whole = w.scales.shape[-2] == 1
    row = jnp.zeros_like(ids) if whole else ids // w.block[0]
    parts = [jnp.take(part, at, axis=0, mode="clip") for part, at in ((w.codes, ids), (w.scales, row))]
    return replace(w, codes=parts[0], scales=parts[1], input_scale=None, block=(1, w.block[1]))


register_format(FP8, _product, rows=_table_rows, ready=_ready)
