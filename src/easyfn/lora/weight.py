"""`LoRA`: a low-rank change beside a frozen weight (Hu et al. 2021, arXiv 2106.09685), as a weight format.

It sits in the slot of the weight that it changes and holds it as `base`, whatever that is: an array, a quantized
weight. So QLoRA is nesting, `LoRA(base=NF4(...))`, and no layer knows of either.

    before                          after
    Linear                          Linear
      weight  f32[out, in]            weight  LoRA
                                        base  f32[out, in]    frozen, the same object
                                        a     f32[rank, in]
                                        b     f32[out, rank]  zeros: nothing has changed yet
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .._dtype import cast, to_dtype
from .._trainable import is_adapter, trainable
from .._tree import lift
from .._weight import Weight, axes_of, dense, dot, ragged_dot, randomized, shape_of, take


class LoRA(eqx.Module):
    """The weight `base + scale * b @ a`: `base` of shape `(..., out, in)`, `a` of `(..., rank, in)`, `b` of `(...,
    out, rank)`.

    Leading axes are those of stacked layers or experts. With `magnitude`, of shape `(..., out, 1)`, the weight is
    DoRA's (Liu et al. 2024, arXiv 2402.09353): every row of the sum is scaled to the norm that `magnitude` holds.
    `dropout` acts on what enters `a`, only while `key` is there: `forward(..., key=...)` gives every adapter its own.
    """

    base: Weight
    a: Any
    b: Any
    magnitude: Any = None
    key: Any = None
    scale: float = eqx.field(static=True, default=1.0)
    dropout: float = eqx.field(static=True, default=0.0)
    start: str | None = eqx.field(static=True, default=None)  # set if the adapter began by changing the base (PiSSA)

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.base)

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    @property
    def alpha(self) -> float:
        """The numerator of the scale as PEFT writes it, `scale * rank`."""
        return self.scale * self.rank


def delta(w: LoRA) -> jax.Array:
    """`scale * b @ a` in float32, shape `(..., out, in)`."""
    a, b = w.a.astype(jnp.float32), w.b.astype(jnp.float32)
    return w.scale * jnp.einsum("...or,...ri->...oi", b, a, precision=lax.Precision.HIGHEST)


def row_norms(w: LoRA) -> jax.Array:
    """The norm of every row of `base + scale * b @ a`, shape `(..., out, 1)`, float32, without gradient.

    The sum is never made: its squared norm is that of the base, plus twice their product, plus that of the change.
    """
    f32 = jnp.float32
    base, a, b = (lax.stop_gradient(x).astype(f32) for x in (dense(w.base), w.a, w.b))
    both = jnp.einsum("...oi,...ri->...or", base, a)
    gram = jnp.einsum("...ri,...si->...rs", a, a)
    change = w.scale * (2.0 * both + w.scale * jnp.einsum("...or,...rs->...os", b, gram))
    square = jnp.sum(base * base, -1, keepdims=True) + jnp.sum(b * change, -1, keepdims=True)
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(f32).tiny))


def _gain(w: LoRA) -> jax.Array:
    """What DoRA multiplies every output with, shape `(..., out)`, float32."""
    return (w.magnitude.astype(jnp.float32) / row_norms(w))[..., 0]


def _dropped(w: LoRA, x: jax.Array) -> jax.Array:
    if w.key is None or w.dropout == 0.0:
        return x
    keep = jax.random.bernoulli(w.key, 1.0 - w.dropout, x.shape)
    return jnp.where(keep, x / (1.0 - w.dropout), jnp.zeros_like(x))


@dot.register(LoRA)
def _(w: LoRA, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    y = dot(w.base, x, dtype=dtype)
    low = dot(w.a.astype(x.dtype), _dropped(w, x))
    # The scale goes to the narrow side: rank columns to multiply instead of `out`.
    y = y + dot(w.b.astype(x.dtype), low * jnp.asarray(w.scale, low.dtype)).astype(y.dtype)
    if w.magnitude is None:
        return y
    gain = _gain(w)
    return (y * gain.reshape((1,) * (y.ndim - 1) + gain.shape)).astype(y.dtype)


@ragged_dot.register(LoRA)
def _(w: LoRA, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
    if w.magnitude is not None:
        return ragged_dot(dense(w), x, group_sizes)
    y = ragged_dot(w.base, x, group_sizes)
    low = ragged_dot(w.a.astype(x.dtype), _dropped(w, x), group_sizes)
    low = low * jnp.asarray(w.scale, low.dtype)
    return y + ragged_dot(w.b.astype(x.dtype), low, group_sizes).astype(y.dtype)


@take.register(LoRA)
def _(w: LoRA, ids: jax.Array) -> Any:
    if len(shape_of(w)) > 2:  # whole experts
        parts = {name: take(getattr(w, name), ids) for name in ("base", "a", "b")}
        magnitude = None if w.magnitude is None else take(w.magnitude, ids)
        return dataclasses.replace(w, **parts, magnitude=magnitude)
    rows = take(w.base, ids)
    low = take(w.b, ids).astype(rows.dtype)
    rows = rows + dot(jnp.swapaxes(w.a, -1, -2).astype(rows.dtype), low * jnp.asarray(w.scale, low.dtype))
    if w.magnitude is None:
        return rows
    return (rows * take(_gain(w)[:, None], ids)).astype(rows.dtype)


@dense.register(LoRA)
def _(w: LoRA) -> jax.Array:
    return lift(_dense)(w)


def _dense(w: LoRA) -> jax.Array:
    base = dense(w.base)
    whole = base.astype(jnp.float32) + delta(w)
    if w.magnitude is not None:
        whole = whole * (w.magnitude.astype(jnp.float32) / row_norms(w))
    return whole.astype(base.dtype)


@shape_of.register(LoRA)
def _(w: LoRA) -> tuple[int, ...]:
    return shape_of(w.base)


@axes_of.register(LoRA)
def _(w: LoRA, axes: tuple[str | None, ...]) -> Any:
    *lead, out, into = axes
    return LoRA(
        axes_of(w.base, axes),
        (*lead, None, into),
        (*lead, out, None),
        None if w.magnitude is None else (*lead, out, None),
        None if w.key is None else tuple(lead),
        scale=w.scale,
        dropout=w.dropout,
        start=w.start,
    )


@cast.register(LoRA)
def _(w: LoRA, dtype: Any, pattern: Any = None) -> LoRA:
    magnitude = None if w.magnitude is None else to_dtype(w.magnitude, dtype)
    parts = {"a": to_dtype(w.a, dtype), "b": to_dtype(w.b, dtype), "magnitude": magnitude}
    return dataclasses.replace(w, base=cast(w.base, dtype), **parts)


@trainable.register(LoRA)
def _(w: LoRA) -> Any:
    none = jax.tree.map(lambda _: False, (w.base, w.key))
    return dataclasses.replace(
        w, base=none[0], a=True, b=True, magnitude=None if w.magnitude is None else True, key=none[1]
    )


@is_adapter.register(LoRA)
def _(w: LoRA) -> bool:
    return True


@randomized.register(LoRA)
def _(w: LoRA, key: jax.Array) -> LoRA:
    return w if w.dropout == 0.0 else dataclasses.replace(w, key=key)


def bound(columns: int) -> float:
    """The half-width of PEFT's uniform start: `kaiming_uniform(a=sqrt(5))` of a matrix with so many columns."""
    return 1.0 / math.sqrt(columns)
