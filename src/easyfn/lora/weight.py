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

from ..core.dtype import cast, to_dtype
from ..core.grouped import grouped_dot
from ..core.trainable import is_adapter, trainable
from ..core.tree import lift
from ..core.weight import Weight, axes_of, dense, dot, ragged_dot, randomized, shape_of, take
from .adapter import arrays, change, dropped, scaled, shift


class LoRA(eqx.Module):
    """The weight `base + scale * b @ a`: `base` of shape `(..., out, in)`, `a` of `(..., rank, in)`, `b` of `(...,
    out, rank)`.

    Leading axes are those of stacked layers or experts. With `magnitude`, of shape `(..., out, 1)`, the weight is
    DoRA's (Liu et al. 2024, arXiv 2402.09353): every row of the sum is scaled to the norm that `magnitude` holds; on a
    table of embeddings it is `(..., 1, in)`, and every column is, as in PEFT. `bias`, of shape `(..., out, 1)`, is
    added to what `b` answers (PEFT's `lora_bias`); the dense weight knows nothing of it. `dropout` acts on what enters
    `a`, only while `key` is there: `forward(..., key=...)` gives every adapter its own.
    """

    base: Weight
    a: Any
    b: Any
    magnitude: Any = None
    key: Any = None
    bias: Any = None
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
    """The norms that DoRA sets, of the rows of `base + scale * b @ a`: `(..., out, 1)`, float32, without gradient.

    Where `magnitude` is one of columns, theirs: `(..., 1, in)`.
    """
    if _of_columns(w):
        return column_norms(w)
    return _norms(dense(w.base), w.a, w.b, w.scale)


def column_norms(w: LoRA) -> jax.Array:
    """The norms of the columns of `base + scale * b @ a`: `(..., 1, in)`."""
    flip = lambda x: jnp.swapaxes(x, -1, -2)
    return flip(_norms(flip(dense(w.base)), flip(w.b), flip(w.a), w.scale))


def _of_columns(w: LoRA) -> bool:
    return w.magnitude is not None and tuple(w.magnitude.shape[-2:]) != (shape_of(w)[-2], 1)


def _norms(base: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """The sum is never made: its squared norm is that of the base, plus twice their product, plus that of the change."""
    f32 = jnp.float32
    base, a, b = (lax.stop_gradient(x).astype(f32) for x in (base, a, b))
    both = jnp.einsum("...oi,...ri->...or", base, a)
    gram = jnp.einsum("...ri,...si->...rs", a, a)
    change = scale * (2.0 * both + scale * jnp.einsum("...or,...rs->...os", b, gram))
    square = jnp.sum(base * base, -1, keepdims=True) + jnp.sum(b * change, -1, keepdims=True)
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(f32).tiny))


def _gain(w: LoRA) -> jax.Array:
    """What DoRA multiplies every output with, shape `(..., out)`, or every input, `(..., in)`; float32."""
    factor = w.magnitude.astype(jnp.float32) / row_norms(w)
    return factor[..., 0, :] if _of_columns(w) else factor[..., 0]


def _low(w: LoRA, x: jax.Array) -> jax.Array:
    """What the adapter adds for its inputs, in their dtype."""
    low = dot(w.a.astype(x.dtype), x)
    # The scale goes to the narrow side: rank columns to multiply instead of `out`.
    y = dot(w.b.astype(x.dtype), low * jnp.asarray(w.scale, low.dtype))
    if w.bias is None:
        return y
    shift = (w.scale * w.bias[..., 0]).astype(y.dtype)
    return y + shift.reshape((1,) * (y.ndim - 1) + shift.shape)


@dot.register(LoRA)
def _(w: LoRA, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    if _of_columns(w):
        return dot(dataclasses.replace(w, magnitude=None), scaled(x, _gain(w)), dtype=dtype)
    y = dot(w.base, x, dtype=dtype)
    entering = dropped(x, w.dropout, w.key)
    change = _low(w, entering).astype(y.dtype)
    if w.magnitude is None:
        return y + change
    gain = _gain(w)
    if entering is x:
        return scaled(y + change, gain)
    # As PEFT computes it: the base's own share sees every input, what the norms change of it sees the dropped ones.
    return y + scaled(dot(w.base, entering, dtype=dtype), gain - 1.0) + scaled(change, gain)


@ragged_dot.register(LoRA)
def _(w: LoRA, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
    if w.magnitude is not None:
        return ragged_dot(dense(w), x, group_sizes)
    if w.bias is not None:
        return grouped_dot(dot, w, x, group_sizes)
    y = ragged_dot(w.base, x, group_sizes)
    low = ragged_dot(w.a.astype(x.dtype), dropped(x, w.dropout, w.key), group_sizes)
    low = low * jnp.asarray(w.scale, low.dtype)
    return y + ragged_dot(w.b.astype(x.dtype), low, group_sizes).astype(y.dtype)


@take.register(LoRA)
def _(w: LoRA, ids: jax.Array) -> Any:
    if len(shape_of(w)) > 2:  # whole experts
        parts = {"base": w.base, **arrays(w)}
        return dataclasses.replace(w, **{name: take(x, ids) for name, x in parts.items()})
    rows = take(w.base, ids)
    low = take(w.b, ids).astype(rows.dtype)
    rows = rows + dot(jnp.swapaxes(w.a, -1, -2).astype(rows.dtype), low * jnp.asarray(w.scale, low.dtype))
    if w.magnitude is None:
        return rows
    if _of_columns(w):
        return scaled(rows, _gain(w))
    return (rows * take(_gain(w)[:, None], ids)).astype(rows.dtype)


@change.register(LoRA)
def _(w: LoRA) -> jax.Array:
    if w.magnitude is not None:
        raise ValueError("DoRA scaled the rows to new norms, and what they were is not known")
    return delta(w)


@shift.register(LoRA)
def _(w: LoRA) -> Any:
    return None if w.bias is None else w.scale * w.bias.astype(jnp.float32)


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
        None if w.magnitude is None else (*lead, None, into) if _of_columns(w) else (*lead, out, None),
        None if w.key is None else tuple(lead),
        None if w.bias is None else (*lead, out, None),
        scale=w.scale,
        dropout=w.dropout,
        start=w.start,
    )


@cast.register(LoRA)
def _(w: LoRA, dtype: Any, pattern: Any = None) -> LoRA:
    parts = {name: to_dtype(x, dtype) for name, x in arrays(w).items()}
    return dataclasses.replace(w, base=cast(w.base, dtype), **parts)


@trainable.register(LoRA)
def _(w: LoRA) -> Any:
    none = jax.tree.map(lambda _: False, w)
    return dataclasses.replace(none, **{name: True for name in arrays(w)})


@is_adapter.register(LoRA)
def _(w: LoRA) -> bool:
    return True


@randomized.register(LoRA)
def _(w: LoRA, key: jax.Array) -> LoRA:
    return w if w.dropout == 0.0 else dataclasses.replace(w, key=key)


def bound(columns: int) -> float:
    """The half-width of PEFT's uniform start: `kaiming_uniform(a=sqrt(5))` of a matrix with so many columns."""
    return 1.0 / math.sqrt(columns)
