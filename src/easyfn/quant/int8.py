"""`Int8`: symmetric 8-bit weights, one scale per output channel; bitsandbytes' `LLM.int8` layout on disk."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._weight import axes_of, dense, format_of, requantize, shape_of
from .config import QuantConfig, method
from .product import by_blocks, inner, register_format, replace

_INNER = (((1,), (1,)), ((), ()))


class Int8(eqx.Module):
    """`w = codes * scales / 127`: `codes` int8 `(..., out, in)`, `scales` float32 `(..., out, 1)`, a row's largest
    magnitude.

    ```python
    import jax.numpy as jnp, easyfn as ef
    w = ef.quant.to_int8(jnp.array([[1.0, -0.5], [0.0, 4.0]]))
    assert w.codes.tolist() == [[127, -64], [0, 127]]
    assert ef.dot(w, jnp.ones((3, 2))).shape == (3, 2)
    ```
    """

    codes: Any
    scales: Any
    dtype: str = eqx.field(static=True, default="float32")


def to_int8(w: Any) -> Int8:
    """Rounds each row to 255 levels, exactly as `bitsandbytes.functional.int8_vectorwise_quant`."""
    # A row of zeros has scale 0 there as well; its codes are 0.
    scales = jnp.max(jnp.abs(w), axis=-1, keepdims=True).astype(jnp.float32)
    ratio = jnp.where(scales > 0, 127.0 / scales, 0.0)
    codes = jnp.round(w.astype(jnp.float32) * ratio).astype(jnp.int8)
    return Int8(codes, scales, jnp.dtype(w.dtype).name)


@method("8bit")
@method("int8")  # the same format by its usual name
def _(w: Any, cfg: QuantConfig) -> Int8:
    cfg.refuse("group_size", "double_quant")
    return to_int8(w)


@shape_of.register(Int8)
def _(w: Int8) -> tuple[int, ...]:
    return tuple(w.codes.shape)


@format_of.register(Int8)
def _(w: Int8) -> str:
    return "int8"


@requantize.register(Int8)
def _(w: Int8, new: jax.Array) -> Int8:
    return replace(to_int8(new), dtype=w.dtype)


@axes_of.register(Int8)
def _(w: Int8, axes: tuple[str | None, ...]) -> Any:
    return replace(w, codes=axes, scales=(*axes[:-1], None))


@dense.register(Int8)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: Int8) -> jax.Array:
    scales = lax.stop_gradient(w.scales) * (1 / 127)
    return (w.codes.astype(jnp.float32) * scales).astype(w.dtype)


def _thin(w: Int8, rows: jax.Array) -> jax.Array:
    """Few rows: integer products, the activation as two int8 digits (relative error 4e-5 of a row's largest result).

    A single int8 digit would cost 8e-3. Two rows are also what XLA on CPU needs to leave its slow vector kernel.
    """
    top = jnp.maximum(jnp.max(jnp.abs(rows), axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    scaled = rows * (127 / top)
    high = jnp.round(scaled)
    low = jnp.round((scaled - high) * 254)
    digits = jnp.concatenate([high, low]).astype(jnp.int8)
    y = lax.dot_general(digits, w.codes, _INNER, preferred_element_type=jnp.int32).astype(jnp.float32)
    y = y[: rows.shape[0]] + y[rows.shape[0] :] * (1 / 254)
    return y * (top * (1 / 127)) * (w.scales[:, 0] * (1 / 127))[None]


@by_blocks
def _wide(w: Int8, rows: jax.Array) -> jax.Array:
    """Many rows: a float product. Codes up to 127 are exact in bfloat16, so a 16-bit input loses nothing."""
    return inner(rows, w.codes.astype(rows.dtype)) * (w.scales[:, 0] * (1 / 127))[None]


def _product(w: Int8, rows: jax.Array) -> jax.Array:
    def thin(w: Int8, rows: jax.Array) -> jax.Array:
        return _thin(w, rows.astype(jnp.float32))

    # Measured on two CPUs of 2 cores: integers win up to about 32 rows of float32, 8 of bfloat16.
    few = 32 if rows.dtype == jnp.float32 else 8
    if rows.shape[0] > few:
        return _wide(w, rows)
    return lax.platform_dependent(w, rows, cpu=thin, default=_wide)


register_format(Int8, _product)
