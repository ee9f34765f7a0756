"""Attention of long sequences in slices of queries: all keys for each, or those that a window leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# `(q, k, v, mask, bias, place of the first query)` to what the queries see.
Attend = Callable[[jax.Array, Any, Any, Any, Any, Any], jax.Array]


def _cut(x: Any, start: Any, size: int, axis: int) -> Any:
    return None if x is None else lax.dynamic_slice_in_dim(x, start, size, axis)


def _over(exact: Callable[[jax.Array, Any, Any, Any], jax.Array], rows: int, q: Any, mask: Any, bias: Any) -> jax.Array:
    """`exact(start, q, mask, bias)` of slices of `rows` queries each, one after the other; again in the backward pass."""
    length = q.shape[2]
    count = -(-length // rows)
    pad = count * rows - length
    behind = lambda x: x if x is None or not pad else jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0)))
    q, bias, mask = behind(q), behind(bias), None if mask is None else mask.padded(pad)

    @jax.checkpoint
    def some(start: jax.Array) -> jax.Array:
        seen = None if mask is None else mask.rows(start, rows)
        return exact(start, _cut(q, start, rows, 2), seen, _cut(bias, start, rows, 2))

    out = lax.map(some, jnp.arange(count) * rows)
    out = jnp.moveaxis(out, 0, 2)
    return out.reshape(*out.shape[:2], count * rows, out.shape[-1])[:, :, :length]


def in_slices(
    exact: Attend, q: jax.Array, k: Any, v: Any, mask: Any, bias: Any, chunk: int, first: int = 0
) -> jax.Array:
    """All keys for every slice; scores of one slice have about `chunk` entries."""
    rows = min(q.shape[2], max(16, chunk // (q.shape[0] * q.shape[1] * k.shape[2])))
    return _over(lambda at, q, mask, bias: exact(q, k, v, mask, bias, at + first), rows, q, mask, bias)


def in_window(exact: Attend, q: jax.Array, k: jax.Array, v: jax.Array, mask: Any, bias: Any, chunk: int) -> jax.Array:
    """For every slice the keys around it. A window counts tokens: where so much padding lies between them that some are
    further off, all keys are taken after all, so that whatever is computed is exact."""
    length, window, area = q.shape[2], mask.window, chunk // (q.shape[0] * q.shape[1])
    # Slices of up to half a window: as large as memory allows, and most of what is computed is seen.
    rows = min(max(16, int(math.sqrt(window * window / 4 + area) - window / 2)), max(64, window // 2), length)
    size = min(length, rows + (window - 1) * (1 if mask.causal else 2))

    def begin(start: Any) -> Any:
        return jnp.clip(start - (window - 1), 0, length - size)

    def near(start: jax.Array, q: jax.Array, seen: Any, bias: Any) -> jax.Array:
        at = begin(start)
        return exact(q, _cut(k, at, size, 2), _cut(v, at, size, 2), seen.keys(at, size), _cut(bias, at, size, 3), start)

    def close(q: jax.Array, bias: Any) -> jax.Array:
        return _over(near, rows, q, mask, bias)

    if mask.query_slots.ndim == 1:  # there is no padding, or nobody said so: places are columns
        return close(q, bias)
    starts = jnp.arange(0, length, rows)
    lowest = mask.query_slots[:, starts] - window
    highest = mask.query_slots[:, jnp.minimum(starts + rows, length) - 1] + window
    first = jax.vmap(lambda places, wanted: jnp.searchsorted(places, wanted, side="right"))(mask.key_slots, lowest)
    last = jax.vmap(lambda places, wanted: jnp.searchsorted(places, wanted, side="left"))(mask.key_slots, highest)
    fits = jnp.all(first >= begin(starts)[None])
    if not mask.causal:
        fits &= jnp.all(last <= begin(starts)[None] + size)
    return lax.cond(fits, close, lambda q, bias: in_slices(exact, q, k, v, mask, bias, chunk), q, bias)
