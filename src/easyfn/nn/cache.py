"""Caches of one layer. A cache is a value: `append` returns a new one, and XLA updates it in place.

Layout `(batch, kv_heads, slots, head_dim)`: head-major, because attention then reads contiguous keys
(decode on CPU was four times faster than `(batch, slots, heads, dim)`).
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._verb import verb
from .context import Context, Mask


class KV(eqx.Module):
    """Keys and values of every slot."""

    k: jax.Array
    v: jax.Array


class Ring(eqx.Module):
    """Keys and values of the last `window` slots: slot `i` lives at `i % window`."""

    k: jax.Array
    v: jax.Array


class CrossKV(eqx.Module):
    """Keys and values of the encoder's output, computed once, and the encoder's padding."""

    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array


@verb
def layer_cache(layer: Any, batch_size: int, max_length: int, dtype: Any) -> Any:
    """An empty cache for one layer: a pytree of arrays, or `None` if the layer keeps nothing.

    The default looks into the children and answers what the only child with a cache answers; a block with more than
    one kind registers its own.
    """
    from .._tree import children, is_leaf

    if is_leaf(layer):
        return None
    found = [
        c for _, child in children(layer)[0] if (c := layer_cache(child, batch_size, max_length, dtype)) is not None
    ]
    if len(found) > 1:
        raise layer_cache.missing(layer, "More than one part of it keeps a cache; say how they are combined.")
    return found[0] if found else None


def empty_kv(batch: int, heads: int, head_dim: int, max_length: int, window: int | None, dtype: Any) -> KV | Ring:
    """The cache of an attention layer: a ring if its window is shorter than the sequence."""
    size = max_length if window is None else min(window, max_length)
    zeros = jnp.zeros((batch, heads, size, head_dim), dtype)
    return Ring(zeros, zeros) if size < max_length else KV(zeros, zeros)


def attend_to(
    cache: KV | Ring | None, k: jax.Array, v: jax.Array, context: Context, window: int | None
) -> tuple[KV | Ring | None, jax.Array, jax.Array, Mask]:
    """Stores new keys and values `(batch, heads, seq, dim)`; returns the cache, all keys, all values and their mask."""

    def mask(key_slots: jax.Array, key_segments: jax.Array | None) -> Mask:
        assert key_segments is not None
        return Mask(context.slots, context.segment_ids, key_slots, key_segments, context.causal, window)

    new = mask(context.slots, context.segment_ids)
    if cache is None:
        return None, k, v, new
    start, count = context.slots[0], k.shape[2]
    if isinstance(cache, KV):
        cache = KV(_write(cache.k, k, start), _write(cache.v, v, start))
        if context.fresh:
            return cache, k, v, new
        return cache, cache.k, cache.v, mask(jnp.arange(cache.k.shape[2]), context.cached_segment_ids)
    size = cache.k.shape[2]
    if count == 1:
        cache = Ring(_write(cache.k, k, start % size), _write(cache.v, v, start % size))
        slots = _ring_slots(start, size)
        return cache, cache.k, cache.v, mask(slots, _segments(context, slots))
    # Several tokens at once see the ring as it was and each other; then the last of them enter the ring.
    before = _ring_slots(start - 1, size)
    kept = _newest(start, count, size)
    if context.fresh:
        keys, values, all_mask = k, v, new
    else:
        keys, values = jnp.concatenate([cache.k, k], axis=2), jnp.concatenate([cache.v, v], axis=2)
        all_mask = mask(
            jnp.concatenate([before, context.slots]),
            jnp.concatenate([_segments(context, before), context.segment_ids], axis=1),
        )
    from_new, index = kept
    pick = lambda old, fresh: jnp.where(from_new[None, None, :, None], jnp.take(fresh, index, axis=2), old)
    return Ring(pick(cache.k, k), pick(cache.v, v)), keys, values, all_mask


def _write(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    zero = jnp.zeros((), start.dtype)
    return jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), (zero, zero, start, zero))


def _ring_slots(last: jax.Array, size: int) -> jax.Array:
    """Which slot each place of a ring holds once slot `last` was written; negative if nothing yet."""
    place = jnp.arange(size)
    return last - (last - place) % size


def _newest(start: jax.Array, count: int, size: int) -> tuple[jax.Array, jax.Array]:
    """For each place of the ring, whether one of `count` new slots from `start` lands there last, and which."""
    index = _ring_slots(start + count - 1, size) - start
    return index >= 0, jnp.clip(index, 0, count - 1)


def _segments(context: Context, slots: jax.Array) -> jax.Array:
    assert context.cached_segment_ids is not None
    return jnp.take(context.cached_segment_ids, jnp.maximum(slots, 0), axis=1)


class Cache(eqx.Module):
    """The cache of a whole model, as [`easyfn.init_cache`][] makes it and `forward` returns it.

    `layers` mirrors the model's layers. `segment_ids` says of every slot whether it holds padding (0), `positions` is the
    position of each row's next token, and `length` counts the slots written so far, padding included.
    """

    layers: Any
    segment_ids: jax.Array  # [batch, max_length] int32
    positions: jax.Array  # [batch] int32
    length: jax.Array  # [] int32
