"""Keys and values as int8: what a `KV`, a `Ring` or a `CrossKV` holds instead of arrays, at a quarter of float32's memory.

A slot's entry is `code * scale`, one scale for each row, key head and slot: the largest entry is 127. So the scale stands
outside of both products of attention, `(q . codes) * scale` and `(p * scale) . codes`, and no entry is ever decoded.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .cache import key_scores, stored, value_sums

# Up to this many rows of queries a product of integers is the faster one on CPU, as for weights (`quant/int8.py`).
_FEW = 32


class Int8Slots(eqx.Module):
    """Keys or values of every slot: int8 `codes` `(..., slots, dim)` and a float32 `scale` `(..., slots)`.

    Rounding has no gradient: such a cache is for inference.

    ```python
    import jax, easyfn as ef
    from easyfn.nn.cache.int8 import encode
    x = jax.random.normal(jax.random.key(0), (1, 2, 5, 64))
    held = encode(x)
    assert abs(held.codes * held.scale[..., None] - x).max() < 0.02
    assert ef.num_bytes(held) < 0.27 * x.nbytes
    ```
    """

    codes: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def dtype(self) -> jnp.dtype:
        return self.codes.dtype


def empty_int8(shape: tuple[int, ...]) -> Int8Slots:
    """Slots that hold nothing: `shape` is `(..., slots, dim)`."""
    return Int8Slots(jnp.zeros(shape, jnp.int8), jnp.zeros(shape[:-1], jnp.float32))


def encode(x: jax.Array) -> Int8Slots:
    """Floats `(..., slots, dim)` to the nearest of 255 steps of their slot."""
    h = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(h), axis=-1) / 127
    codes = jnp.round(h / jnp.where(scale == 0, 1.0, scale)[..., None])
    return Int8Slots(codes.astype(jnp.int8), scale)


@stored.register(Int8Slots)
def _(held: Int8Slots, new: jax.Array) -> Int8Slots:
    return encode(new)


@key_scores.register(Int8Slots)
def _(keys: Int8Slots, queries: jax.Array) -> jax.Array:
    return _product(queries, keys.codes, 3) * keys.scale[:, :, None]


@value_sums.register(Int8Slots)
def _(values: Int8Slots, probabilities: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return _product((probabilities * values.scale[:, :, None]).astype(dtype), values.codes, 2)


def _product(rows: jax.Array, codes: jax.Array, axis: int) -> jax.Array:
    """Float rows `(batch, kv_heads, rows, n)` with the axis of `codes` that is `n` long, float32."""
    dims = (((3,), (axis,)), ((0, 1), (0, 1)))

    def whole(rows: jax.Array, codes: jax.Array) -> jax.Array:
        return lax.dot_general(rows, codes.astype(rows.dtype), dims, preferred_element_type=jnp.float32)

    def digits(rows: jax.Array, codes: jax.Array) -> jax.Array:
        """Each row as two int8 digits, an error of 4e-5 of its largest entry: XLA on CPU would write the codes out in
        float32, and multiplies integers where they are."""
        rows = rows.astype(jnp.float32)
        step = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) / 127
        high = jnp.round(rows / (step := jnp.where(step == 0, 1.0, step)))
        low = jnp.round((rows / step - high) * 254)
        both = jnp.concatenate([high, low], axis=2).astype(jnp.int8)
        out = lax.dot_general(both, codes, dims, preferred_element_type=jnp.int32).astype(jnp.float32)
        return (out[:, :, : rows.shape[2]] + out[:, :, rows.shape[2] :] * (1 / 254)) * step

    if rows.shape[2] > _FEW:
        return whole(rows, codes)
    return lax.platform_dependent(rows, codes, cpu=digits, default=whole)
