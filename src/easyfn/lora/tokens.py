"""`Rows`: some rows of a table trained as a whole, as PEFT's `trainable_token_indices` are: a few tokens' embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.slots import Found, find_slots
from ..core.tree import lift, matches, nothing_matched
from ..core.weight import Weight, dense, dot, shape_of, take
from ..nn import input_embeddings
from .adapter import register_adapter


class Rows(eqx.Module):
    """The table `base` `(rows, dim)` with `value[i]`, which trains, in the place of its row `indices[i]`.

    A tied head multiplies with the new rows too, as in PEFT. The base may be quantized.
    """

    base: Weight
    value: Any  # [len(indices), dim]
    indices: tuple[int, ...] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.base)

    @property
    def dtype(self) -> Any:
        return self.base.dtype


def rows(weight: Weight, indices: Sequence[int], dtype: Any) -> Rows:
    """A fresh one: copies of the rows."""
    chosen = tuple(int(i) for i in indices)
    size = shape_of(weight)[0]
    if not chosen or len(set(chosen)) < len(chosen) or not 0 <= min(chosen) <= max(chosen) < size:
        raise ValueError(
            f"apply_lora: trainable_token_indices={list(chosen)[:8]} are no different rows of a table of {size}"
        )
    value = lift(lambda w: jnp.array(take(w, jnp.asarray(chosen)), dtype=dtype, copy=True))(weight)
    return Rows(weight, value, chosen)


def choose_rows(
    model: Any, wanted: Mapping[str, Sequence[int]] | Sequence[int]
) -> dict[str, tuple[Found, Sequence[int]]]:
    """The tables, by path, and the rows of each: of the input embeddings, or by pattern."""
    tables = find_slots(model, ("embedding", "head"))
    if not isinstance(wanted, Mapping):
        table = input_embeddings(model).weight
        return {f.path: (f, wanted) for f in tables if f.weight is table}
    found = {}
    for pattern, indices in wanted.items():
        hit = [f for f in tables if matches(pattern, f.path, f.weight)]
        if not hit:
            raise nothing_matched("apply_lora", pattern, [f.path for f in tables])
        found.update({f.path: (f, indices) for f in hit})
    return found


def _place(w: Rows) -> jax.Array:
    return jnp.asarray(np.asarray(w.indices, np.int32))


def _new(w: Rows) -> jax.Array:
    return w.value.astype(w.base.dtype)


@take.register(Rows)
def _(w: Rows, ids: jax.Array) -> Any:
    old = take(w.base, ids)
    hit = ids[..., None] == _place(w).reshape((1,) * ids.ndim + (-1,))
    new = take(_new(w), jnp.argmax(hit, axis=-1))
    return jnp.where(jnp.any(hit, axis=-1)[..., None], new.astype(old.dtype), old)


@dot.register(Rows)
def _(w: Rows, x: jax.Array, *, dtype: Any = None) -> jax.Array:
    y = dot(w.base, x, dtype=dtype)
    return y.at[..., _place(w)].set(dot(_new(w), x, dtype=dtype).astype(y.dtype))


@dense.register(Rows)
def _(w: Rows) -> jax.Array:
    return lift(_dense)(w)


def _dense(w: Rows) -> jax.Array:
    base = dense(w.base)
    return base.at[_place(w)].set(w.value.astype(base.dtype))


register_adapter(Rows, lambda w, lead, out, into: {"value": (*lead, None, into)})
