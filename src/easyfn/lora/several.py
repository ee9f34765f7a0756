"""`Adapters`: several low-rank changes beside one frozen weight, of which each row of a batch takes its own.

    Linear
      weight  Adapters
                base   f32[out, in]       the same object as before
                a      f32[n, rank, in]   adapter by adapter; lower ranks are filled with zeros
                b      f32[n, out, rank]
                scale  f32[n]
                ids    i32[rows]          which adapter a row takes: data, so another choice is the same program

The rows' own `a` and `b` are gathered and multiplied as batched products. Measured on CPU beside one product with
all adapters and a mask, and beside a loop over rows: the gathered form costs the same whether there are 1 or 64
adapters, and is the fastest or near it in every shape (`benchmarks/adapters.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..core.dtype import cast, to_dtype
from ..core.grouped import grouped_dot
from ..core.trainable import is_adapter, trainable
from ..core.tree import lift
from ..core.weight import Weight, axes_of, dense, dot, ragged_dot, routed, shape_of, take


class Adapters(eqx.Module):
    """The weight `base + scale[i] * b[i] @ a[i]` with the adapter `i` of each row, or a mixture, or `base` alone.

    `base`: `(..., out, in)`; `a`: `(..., n, rank, in)`; `b`: `(..., n, out, rank)`; `scale`: `(..., n)`. Leading axes are
    those of stacked layers or experts. `gain`, `(..., n, out)`, is what DoRA multiplies the rows of the sum with, and
    `magnitude` what it was made of. What is chosen: `ids`, int32 `(..., rows)` with -1 for the base (one row is all
    rows), or `mix`, `(..., n)`, the weights of a mixture, or neither, which is the base. Made by
    [`easyfn.with_adapters`][], chosen by [`easyfn.use_adapter`][].
    """

    base: Weight
    a: Any
    b: Any
    scale: Any
    magnitude: Any = None
    gain: Any = None
    ids: Any = None
    mix: Any = None
    names: tuple[str, ...] = eqx.field(static=True, default=())
    ranks: tuple[int | None, ...] = eqx.field(static=True, default=())  # None: this adapter leaves this weight alone
    dora: tuple[bool, ...] = eqx.field(static=True, default=())

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.base)

    @property
    def dtype(self) -> Any:
        return self.base.dtype


@routed.register(Adapters)
def _(w: Adapters, ids: jax.Array) -> Adapters:
    lead = w.a.shape[:-3]
    return dataclasses.replace(w, ids=jnp.broadcast_to(ids, (*lead, *ids.shape)), mix=None)


class _Choice(eqx.Module):
    """The adapter of each row: `a` `(rows, rank, in)`, `b` `(rows, out, rank)`, `scale` `(rows,)`, `gain` `(rows, out)`."""

    a: jax.Array
    b: jax.Array
    scale: jax.Array
    gain: Any


def _choose(w: Adapters) -> _Choice:
    """What `ids` or `mix` says of a weight without leading axes. A mixture is one adapter: all ranks, side by side."""
    if w.mix is not None:
        gain = None
        mix = w.mix.astype(jnp.float32)
        each = mix * w.scale
        if w.gain is not None:  # each DoRA by its own difference from the base; PEFT's sum depends on the order
            gain = (1.0 + jnp.sum(mix[:, None] * (w.gain - 1.0), 0))[None]
            b = w.b * w.gain[:, :, None].astype(w.b.dtype)
        else:
            b = w.b
        n, rank, into = w.a.shape
        a = (w.a * each[:, None, None].astype(w.a.dtype)).reshape(1, n * rank, into)
        return _Choice(a, jnp.moveaxis(b, 0, 1).reshape(1, -1, n * rank), jnp.ones((1,), jnp.float32), gain)
    some = w.ids >= 0
    pick = lambda x: jnp.take(x, w.ids, axis=0, mode="clip")
    gain = None if w.gain is None else jnp.where(some[:, None], pick(w.gain), 1.0)
    b = pick(w.b)
    if gain is not None:
        b = b * gain[:, :, None].astype(b.dtype)
    return _Choice(pick(w.a), b, jnp.where(some, pick(w.scale), 0.0), gain)


def _by_row(x: jax.Array, rows: int) -> jax.Array:
    """`x` `(batch, ...)` as `(rows, batch / rows * ..., last)`: every row's entries lie together, as beams do."""
    if x.ndim < 2 or x.shape[0] % rows:
        raise ValueError(
            f"adapter_ids choose for {rows} rows, and a layer was given an input of shape {x.shape}: its leading axis "
            "is not those rows. Give one id per row of the batch"
        )
    return x.reshape(rows, -1, x.shape[-1])


def _batched(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x[i] @ w[i].T` in the dtype of `x`, float32 accumulation: `(rows, m, in)` and `(rows, out, in)`."""
    if w.shape[0] == 1:
        return dot(w[0], x)
    out = lax.dot_general(x, w.astype(x.dtype), (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def _change(chosen: _Choice, low: jax.Array) -> jax.Array:
    return _batched(low * chosen.scale[:, None, None].astype(low.dtype), chosen.b)


@dot.register(Adapters)
def _(w: Adapters, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    y = dot(w.base, x, dtype=dtype)
    if w.ids is None and w.mix is None:
        return y
    chosen = _choose(w)
    if chosen.scale.shape[0] == 1:
        x, rows = x[None], y[None]
        x = x.reshape(1, -1, x.shape[-1])
    else:
        x, rows = _by_row(x, chosen.scale.shape[0]), y
    change = _change(chosen, _batched(x, chosen.a)).reshape(y.shape).astype(y.dtype)
    if chosen.gain is None:
        return y + change
    scaled = rows.reshape(chosen.gain.shape[0], -1, y.shape[-1]) * chosen.gain[:, None]
    return scaled.reshape(y.shape).astype(y.dtype) + change


@take.register(Adapters)
def _(w: Adapters, ids: jax.Array) -> Any:
    if len(shape_of(w)) > 2:  # whole experts
        names = ("base", "a", "b", "scale", "magnitude", "gain", "ids", "mix")
        parts: dict[str, Any] = {n: take(getattr(w, n), ids) for n in names if getattr(w, n) is not None}
        return dataclasses.replace(w, **parts)
    y = take(w.base, ids)
    if w.ids is None and w.mix is None:
        return y
    chosen = _choose(w)
    rows = chosen.scale.shape[0]
    flat = ids.reshape(1, -1) if rows == 1 else _by_row(ids[..., None], rows)[..., 0]
    if w.mix is not None:
        low = take(chosen.b[0], flat)
    else:  # only the entries that are looked up, of each row's own adapter
        own = jnp.maximum(w.ids, 0)[:, None]
        low = w.b.at[own, flat].get(mode="clip")
    scaled = low.astype(y.dtype) * chosen.scale[:, None, None].astype(y.dtype)
    return y + _batched(scaled, jnp.swapaxes(chosen.a, -1, -2)).reshape(y.shape)


@ragged_dot.register(Adapters)
def _(w: Adapters, x: jax.Array, group_sizes: jax.Array) -> jax.Array:
    if w.ids is None and w.mix is None:
        return ragged_dot(w.base, x, group_sizes)
    if w.ids is not None and w.ids.shape[-1] != 1:
        raise ValueError(
            "adapter_ids per row reach no adapters on experts: their rows are sorted by expert, so that rows of one "
            "sequence no longer lie together. Choose one for the whole batch (ef.use_adapter(model, name)), or leave "
            "the experts out of the adapters"
        )
    return grouped_dot(dot, w, x, group_sizes)


@dense.register(Adapters)
def _(w: Adapters) -> jax.Array:
    if w.ids is not None and w.ids.shape[-1] != 1:
        raise ValueError(
            "a weight whose adapter differs by row has no one dense form: choose one, ef.use_adapter(model, name)"
        )
    return lift(_dense)(w)


def _dense(w: Adapters) -> jax.Array:
    base = dense(w.base)
    if w.ids is None and w.mix is None:
        return base

    def one(w: Adapters, base: jax.Array) -> jax.Array:
        c = _choose(w)
        change = jnp.einsum("or,ri->oi", c.b[0].astype(jnp.float32), c.a[0].astype(jnp.float32), precision="highest")
        kept = base.astype(jnp.float32) if c.gain is None else base.astype(jnp.float32) * c.gain[0][:, None]
        return kept + c.scale[0] * change

    for _ in range(w.a.ndim - 3):
        one = jax.vmap(one)
    return one(dataclasses.replace(w, base=None), base).astype(base.dtype)


@shape_of.register(Adapters)
def _(w: Adapters) -> tuple[int, ...]:
    return shape_of(w.base)


@axes_of.register(Adapters)
def _(w: Adapters, axes: tuple[str | None, ...]) -> Any:
    *lead, out, into = axes
    some = lambda x, names: None if x is None else names
    parts: dict[str, Any] = {
        "a": (*lead, None, None, into),
        "b": (*lead, None, out, None),
        "scale": (*lead, None),
        "magnitude": some(w.magnitude, (*lead, None, out)),
        "gain": some(w.gain, (*lead, None, out)),
        "ids": some(w.ids, (*lead, None)),
        "mix": some(w.mix, (*lead, None)),
    }
    return dataclasses.replace(w, base=axes_of(w.base, axes), **parts)


@cast.register(Adapters)
def _(w: Adapters, dtype: Any, pattern: Any = None) -> Adapters:
    return dataclasses.replace(w, base=cast(w.base, dtype), a=to_dtype(w.a, dtype), b=to_dtype(w.b, dtype))


@trainable.register(Adapters)
def _(w: Adapters) -> Any:
    none = jax.tree.map(lambda _: False, w)
    if w.gain is not None:
        raise ValueError(
            "trainable: a gain of DoRA follows from its adapter, and several adapters keep it fixed. Train one at a "
            "time: ef.single_adapter(model, name)"
        )
    return dataclasses.replace(none, a=True, b=True)


@is_adapter.register(Adapters)
def _(w: Adapters) -> bool:
    return True
