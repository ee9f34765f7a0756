"""`Full`: a weight trained as a whole, as PEFT's `modules_to_save` and trained biases are, beside what it was.

It fits every slot, also those of biases and norms:

    before                          after
    LayerNorm                       LayerNorm
      weight  f32[dim]                weight  Full
                                        base   f32[dim]   frozen, the same object
                                        value  f32[dim]   a copy: nothing has changed yet
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.dtype import cast, to_dtype
from ..core.trainable import is_adapter, trainable
from ..core.tree import lift
from ..core.weight import Weight, axes_of, dense, dot, ragged_dot, shape_of, take


class Full(eqx.Module):
    """The weight `value`, which trains, in the place of `base`, which stays: both of one shape, `(..., out, in)` or any.

    It computes in the dtype of `base`. On a quantized base `value` is the dense weight.
    """

    base: Weight
    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.base)

    @property
    def dtype(self) -> Any:
        return self.base.dtype


def full(weight: Weight, dtype: Any) -> Full:
    """A fresh one: a copy of the weight, never the same buffer."""
    value = lift(lambda w: jnp.array(dense(w), dtype=dtype, copy=True))(weight)
    return Full(weight, value)


def _computed(w: Full) -> Any:
    return to_dtype(w.value, w.base.dtype)


@dense.register(Full)
def _(w: Full) -> jax.Array:
    return _computed(w)


@dot.register(Full)
def _(w: Full, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    return dot(_computed(w), x, dtype=dtype)


@take.register(Full)
def _(w: Full, ids: jax.Array) -> Any:
    return to_dtype(take(w.value, ids), w.base.dtype)


@ragged_dot.register(Full)
def _(w: Full, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
    return ragged_dot(_computed(w), x, group_sizes)


@shape_of.register(Full)
def _(w: Full) -> tuple[int, ...]:
    return tuple(w.value.shape) if w.base is None else shape_of(w.base)


@axes_of.register(Full)
def _(w: Full, axes: tuple[str | None, ...]) -> Any:
    return Full(axes_of(w.base, axes), axes)


@cast.register(Full)
def _(w: Full, dtype: Any, pattern: Any = None) -> Full:
    return Full(cast(w.base, dtype), to_dtype(w.value, dtype))


@trainable.register(Full)
def _(w: Full) -> Any:
    return dataclasses.replace(jax.tree.map(lambda _: False, w), value=True)


@is_adapter.register(Full)
def _(w: Full) -> bool:
    return True
