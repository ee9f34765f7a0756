"""`Int8`: symmetric 8-bit weights, one scale per output channel; bitsandbytes' `LLM.int8` layout on disk.

The methods `8bit` (also `int8`), weight-only, and `a8bit`, whose products round their input to 8 bits as well.
"""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.weight import axes_of, dense, format_of, requantize, shape_of
from .config import QuantConfig, method
from .product import by_blocks, inner, register_format, replace, smoothed
from .rounding import inverse, row_codes
from .thin import Thin, call

_INNER = (((1,), (1,)), ((), ()))


class Int8(eqx.Module):
    """`w = codes * scales / 127`: `codes` int8 `(..., out, in)`, `scales` float32 `(..., out, 1)`, a row's largest
    magnitude.

    `activations`: `None`, or `"int8"`: a product rounds each row of its input to 255 levels, anew for every call. `smooth`:
    `None`, or float32 `(..., 1, in)`: the codes are those of the weight times `smooth`, and a product takes its input
    divided by it (SmoothQuant, arXiv 2211.10438), which moves the outliers of an input into the weight.

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
    smooth: Any = None
    activations: str | None = eqx.field(static=True, default=None)


def to_int8(w: Any, activations: str | None = None) -> Int8:
    """Rounds each row to 255 levels, exactly as `bitsandbytes.functional.int8_vectorwise_quant`."""
    # A row of zeros has scale 0 there as well; its codes are 0.
    scales = jnp.max(jnp.abs(w), axis=-1, keepdims=True).astype(jnp.float32)
    ratio = jnp.where(scales > 0, 127.0 / scales, 0.0)
    codes = jnp.round(w.astype(jnp.float32) * ratio).astype(jnp.int8)
    return Int8(codes, scales, jnp.dtype(w.dtype).name, activations=activations)


@method("8bit")
@method("int8")  # the same format by its usual name
def _(w: Any, cfg: QuantConfig) -> Int8:
    cfg.refuse("group_size", "double_quant", "block")
    return to_int8(w)


@method("a8bit")
def _(w: Any, cfg: QuantConfig) -> Int8:
    cfg.refuse("group_size", "double_quant", "block")
    return to_int8(w, "int8")


@shape_of.register(Int8)
def _(w: Int8) -> tuple[int, ...]:
    return tuple(w.codes.shape)


@format_of.register(Int8)
def _(w: Int8) -> str:
    return "int8" if w.activations is None else "a8bit"


@requantize.register(Int8)
def _(w: Int8, new: jax.Array) -> Int8:
    fresh = to_int8(new if w.smooth is None else new.astype(jnp.float32) * w.smooth)
    return replace(w, codes=fresh.codes, scales=fresh.scales)


@axes_of.register(Int8)
def _(w: Int8, axes: tuple[str | None, ...]) -> Any:
    smooth = None if w.smooth is None else (*axes[:-2], None, axes[-1])
    return replace(w, codes=axes, scales=(*axes[:-1], None), smooth=smooth)


@dense.register(Int8)
@functools.partial(jax.jit, inline=True)  # one program where it is called eagerly, nothing of its own inside another
def _(w: Int8) -> jax.Array:
    scales = lax.stop_gradient(w.scales) * (1 / 127)
    full = w.codes.astype(jnp.float32) * scales
    return (full if w.smooth is None else full / lax.stop_gradient(w.smooth)).astype(w.dtype)


def _digits(w: Int8, rows: jax.Array, count: int) -> jax.Array:
    """Integer products of `rows`, float32, as one int8 digit each or as two.

    One is what `a8bit` asks for, an error of 8e-3 of a row's largest result; two have 4e-5. Two rows are also what XLA on
    CPU needs to leave its slow vector kernel.
    """
    codes, steps = row_codes(rows, "int8")
    high, steps = codes[:, 0], steps[:, 0]
    if count == 1:
        digits = high if rows.shape[0] > 1 else jnp.concatenate([high, high])
    else:
        digits = jnp.concatenate([high, jnp.round((rows * inverse(steps) - high) * 254)])
    y = lax.dot_general(digits.astype(jnp.int8), w.codes, _INNER, preferred_element_type=jnp.int32)
    y = y.astype(jnp.float32)
    high = y[: rows.shape[0]]
    if count == 2:
        high = high + y[rows.shape[0] :] * (1 / 254)
    return high * steps * (w.scales[:, 0] * (1 / 127))[None]


@by_blocks
def _wide(w: Int8, rows: jax.Array) -> jax.Array:
    """A float product. Codes up to 127 are exact in bfloat16, so a 16-bit input loses nothing."""
    return inner(rows, w.codes.astype(rows.dtype)) * (w.scales[:, 0] * (1 / 127))[None]


def _codes(w: Int8, rows: jax.Array) -> jax.Array:
    """The integer product of one digit in bfloat16, which is exact: for hardware with no fast int8 product of few rows."""
    codes, steps = row_codes(rows, "int8")
    return _wide(w, codes[:, 0].astype(jnp.bfloat16)) * steps[:, 0]


def _product(w: Int8, rows: jax.Array) -> jax.Array:
    def one(w: Int8, rows: jax.Array) -> jax.Array:
        return _digits(w, rows, 1)

    if w.activations is not None:
        return lax.platform_dependent(w, rows.astype(jnp.float32), cpu=one, default=_codes)

    def thin(w: Int8, rows: jax.Array) -> jax.Array:
        return _digits(w, rows.astype(jnp.float32), 2)

    # Measured on two CPUs of 2 cores: integers win up to about 32 rows of float32, 8 of bfloat16.
    few = 32 if rows.dtype == jnp.float32 else 8
    if rows.shape[0] > few:
        return _wide(w, rows)
    return lax.platform_dependent(w, rows, cpu=thin, default=_wide)


def _exact(w: Int8, rows: jax.Array) -> jax.Array:
    return _wide(w, rows) if w.activations is None else _product(w, rows)


def _table_rows(w: Int8, ids: jax.Array) -> Int8:
    found = [jnp.take(part, ids, axis=0, mode="clip") for part in (w.codes, w.scales)]
    return replace(w, codes=found[0], scales=found[1])


def _fits(w: Int8) -> bool:
    return w.activations is None and w.codes.shape[-1] % 32 == 0


def _thin(w: Int8, rows: jax.Array) -> jax.Array:
    return call("bytes", shape_of(w), rows, w.codes, w.scales, unit=np.float32(1 / 127))


register_format(Int8, _product, rows=_table_rows, enter=smoothed, exact=_exact, thin=Thin(_fits, _thin))
