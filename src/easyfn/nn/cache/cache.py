"""Caches of one layer. A cache is a value: `append` returns a new one, and XLA updates it in place.

Layout `(batch, kv_heads, slots, head_dim)`: head-major, because attention then reads contiguous keys
(decode on CPU was four times faster than `(batch, slots, heads, dim)`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ...core.arrays import Host
from ...core.halves import product
from ...core.verb import verb
from ..context import Context, Mask

Held = Any  # arrays, or a small pytree in their place whose leaves have the same leading axes: see `cache_int8.py`


class KV(eqx.Module):
    """Keys and values of every slot."""

    k: Held
    v: Held


class Ring(eqx.Module):
    """Keys and values of the last `window` tokens: the token that has `i` before it in its row lives at `i % window`.

    Padding is no token and takes no room, wherever it stands: see `Context.order`.
    """

    k: Held
    v: Held
    segment_ids: jax.Array  # [batch, window]


class CrossKV(eqx.Module):
    """Keys and values of the encoder's output, computed once, and the encoder's padding."""

    k: Held
    v: Held
    segment_ids: jax.Array


@verb
def layer_cache(layer: Any, batch_size: int, max_length: int, dtype: Any) -> Any:
    """An empty cache for one layer: a pytree of arrays, or `None` if the layer keeps nothing.

    The default looks into the children and answers what the only child with a cache answers; a block with more than
    one kind registers its own.
    """
    from ...core.tree import children, is_leaf

    if is_leaf(layer):
        return None
    found = [
        c for _, child in children(layer)[0] if (c := layer_cache(child, batch_size, max_length, dtype)) is not None
    ]
    if len(found) > 1:
        raise layer_cache.missing(layer, "More than one part of it keeps a cache; say how they are combined.")
    return found[0] if found else None


@verb(example="@ef.nn.rewindable.register({type})\ndef _(cache): return False")
def rewindable(cache: Any) -> bool:
    """Whether the newest tokens can be taken back out of one layer's cache by a smaller `Cache.length`.

    Keys that were written beyond it are seen by nobody. A state that every token was added to has no such place, so drafts of
    [`easyfn.generate`][] are refused for a model with one. A kind of cache that is not registered cannot.
    """
    return False


@rewindable.register(KV, Ring, CrossKV)
def _(cache: Any) -> bool:
    return True


def empty_kv(batch: int, heads: int, head_dim: int, max_length: int, window: int | None, dtype: Any) -> KV | Ring:
    """The cache of an attention layer: a ring if its window is shorter than the sequence."""
    size = max_length if window is None else min(window, max_length)
    k, v = (
        empty_slots((batch, heads, size, head_dim), dtype) for _ in range(2)
    )  # no buffer twice: both can be donated
    return Ring(k, v, jnp.zeros((batch, size), jnp.int32)) if size < max_length else KV(k, v)


def empty_slots(shape: tuple[int, ...], dtype: Any) -> Held:
    """Room for keys or values of `shape` `(batch, heads, slots, dim)`: zeros of a float `dtype`, or int8 with scales."""
    if jnp.dtype(dtype) != jnp.int8:
        return jnp.zeros(shape, dtype)
    from .int8 import empty_int8

    return empty_int8(shape)


@verb
def stored(held: Held, new: jax.Array) -> Any:
    """New keys or values, floats `(..., slots, dim)`, in the form in which `held` holds the others."""
    if jnp.issubdtype(held.dtype, jnp.integer) and jnp.issubdtype(new.dtype, jnp.floating):
        raise TypeError(
            f"a cache of {held.dtype} without scales cannot hold {new.dtype}: make it with ef.nn.empty_kv(..., dtype) or "
            "ef.nn.empty_slots(shape, dtype), which know int8"
        )
    return new.astype(held.dtype)


@verb
def key_scores(keys: Held, queries: jax.Array) -> jax.Array:
    """The products of queries `(batch, kv_heads, rows, dim)` with all keys: float32 `(batch, kv_heads, rows, slots)`."""
    common = jnp.result_type(queries.dtype, keys.dtype)
    return product(queries.astype(common), keys.astype(common), (((3,), (3,)), ((0, 1), (0, 1))))


@verb
def value_sums(values: Held, probabilities: jax.Array, dtype: Any) -> jax.Array:
    """All values, each as much as `probabilities` `(batch, kv_heads, rows, slots)`, float32, say of it: float32 `(batch,
    kv_heads, rows, dim)`. `dtype` is that of the pass, to which the factors are rounded."""
    common = jnp.result_type(dtype, values.dtype)
    return product(probabilities.astype(common), values.astype(common), (((3,), (2,)), ((0, 1), (0, 1))))


def seen(context: Context, slots: jax.Array, segments: jax.Array | None, window: int | None) -> Mask:
    """What the pass's queries may see of keys in `slots` whose segments are `segments`."""
    assert segments is not None
    context = context.with_window(window)
    if context.blocks is None:
        blocks = None
    else:  # of what was cached by earlier passes none is left
        place = jnp.broadcast_to(slots, segments.shape) - jnp.reshape(context.slots[..., :1], (-1, 1))
        own = jnp.take_along_axis(context.blocks, jnp.clip(place, 0, context.blocks.shape[1] - 1), axis=1)
        blocks = jnp.where((place >= 0) & (place < context.blocks.shape[1]), own, 0)
    if window is None or window >= slots.shape[-1]:
        return mask_of(context, context.slots, slots, segments, None, blocks)
    return mask_of(context, context.order, order_of(segments), segments, window, blocks)


def mask_of(
    context: Context, places: jax.Array, keys: jax.Array, segments: jax.Array, window: int | None, blocks: Any
) -> Mask:
    """The mask of a pass whose queries lie at `places`, and its keys, of `segments` and `blocks`, at `keys`."""
    whole = context.block_rule == "whole"
    return Mask(places, context.segment_ids, keys, segments, context.causal, window, context.blocks, blocks, whole)


def seen_here(context: Context, window: int | None) -> Mask:
    """What the pass's queries may see of the pass's own keys: a window counts tokens, padding between them does not."""
    context = context.with_window(window)
    places = context.slots if window is None else context.order
    return mask_of(context, places, places, context.segment_ids, window, context.blocks)


@verb
def attend_to(
    cache: Any, k: jax.Array, v: jax.Array, context: Context, window: int | None
) -> tuple[Any, Held, Held, Mask]:
    """Stores new keys and values `(batch, heads, seq, dim)`; returns the cache, all keys, all values and their mask.

    Dispatched on the kind of cache, so that a new kind is a file of its own and no layer knows of it.
    """
    if cache is not None:
        raise attend_to.missing(cache, "No layer's keys and values can be kept in it.")
    return None, k, v, seen_here(context, window)


@verb
def at_layer(cache: Any, layer: Any) -> Any:
    """`cache`, which holds all layers of a stacked run, for layer number `layer` of them; for all again with `None`.

    A kind of cache that is registered here is handed from layer to layer whole. Of every other kind each layer is given
    its slice.
    """
    raise at_layer.missing(cache, "It is cut into the slices of its layers.")


@attend_to.register(KV)
def _(cache: KV, k: jax.Array, v: jax.Array, context: Context, window: int | None) -> Any:
    start = context.slots[..., 0]
    cache = KV(write(cache.k, k, start), write(cache.v, v, start))
    if context.fresh:
        return cache, k, v, seen_here(context, window)
    slots = jnp.arange(cache.k.shape[2])
    return cache, cache.k, cache.v, seen(context, slots, context.cached_segment_ids, window)


@attend_to.register(Ring)
def _(cache: Ring, k: jax.Array, v: jax.Array, context: Context, window: int | None) -> Any:
    count, size, segments = k.shape[2], cache.k.shape[2], context.segment_ids
    order = jnp.broadcast_to(context.order, segments.shape)
    start, last = order[:, 0], order[:, -1] + (segments[:, -1] > 0) - 1
    if count == 1:
        # Padding is written at the place of the next token, whose present holder is out of every window by then.
        place = start % size
        cache = Ring(write(cache.k, k, place), write(cache.v, v, place), write(cache.segment_ids, segments, place, 1))
        mask = Mask(order, segments, ring_order(last, size), cache.segment_ids, context.causal, window)
        return cache, cache.k, cache.v, mask
    # Several tokens at once see the ring as it was and each other; then the last of them enter the ring.
    if context.fresh:
        keys, values, mask = k, v, seen_here(context, window)
    else:
        keys, values = _behind(cache.k, k), _behind(cache.v, v)
        orders = jnp.concatenate([ring_order(start - 1, size), order], axis=1)
        behind = jnp.concatenate([cache.segment_ids, segments], axis=1)
        blocks = None if context.blocks is None else jnp.pad(context.blocks, ((0, 0), (size, 0)))
        mask = mask_of(context, order, orders, behind, window, blocks)
    number = ring_order(last, size) - start[:, None]  # which token of this pass each place holds; negative: none
    column = jnp.argsort(segments == 0, axis=1, stable=True)  # of the pass's tokens, padding behind them
    column = jnp.take_along_axis(column, jnp.clip(number, 0, count - 1), axis=1)

    def entered(held: Any, new: Any) -> Any:
        def one(old: jax.Array, new: jax.Array) -> jax.Array:
            axis = 1 if old.ndim == 2 else 2
            along = lambda index: jnp.expand_dims(index, [i for i in range(old.ndim) if i not in (0, axis)])
            return jnp.where(along(number >= 0), jnp.take_along_axis(new, along(column), axis=axis), old)

        return jax.tree.map(one, held, new)

    cache = Ring(
        entered(cache.k, stored(cache.k, k)),
        entered(cache.v, stored(cache.v, v)),
        entered(cache.segment_ids, segments),
    )
    return cache, keys, values, mask


def _behind(held: Held, new: jax.Array) -> Any:
    """What is held, and the new keys or values after it. Arrays of two dtypes become the wider one."""
    new = new if isinstance(held, jax.Array) else stored(held, new)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), held, new)


def write(held: Held, new: jax.Array, start: jax.Array, axis: int = 2) -> Any:
    """What is held, `(batch, ...)`, with `new` in it from `start` along `axis`: a number, or one for each row."""

    def one(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        if start.ndim == 0:
            return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis)
        return jax.vmap(lambda b, n, at: jax.lax.dynamic_update_slice_in_dim(b, n, at, axis - 1))(buffer, new, start)

    def put(held: Held, new: Held, start: jax.Array) -> Any:
        return jax.tree.map(lambda buffer, new: one(buffer, new, start), held, new)

    def apart(held: Held, new: Held, start: jax.Array) -> Any:
        return jax.lax.cond(jnp.all(start >= 0), put, lambda held, new, start: held, held, new, start)

    new = stored(held, new)
    if axis != 2 or 1 not in held.shape[:2]:
        return put(held, new, start)
    # For a product with one row, or one head, XLA drops the axis of one, and on CPU it fuses the write into that: a copy of the
    # cache for every token. It does not look into a branch.
    return jax.lax.platform_dependent(held, new, start, cpu=apart, default=put)


def order_of(segments: jax.Array) -> jax.Array:
    """How many tokens stand before each slot of its row, `(batch, slots)`: padding, of segment 0, is not counted."""
    real = (segments > 0).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) - real


def ring_order(last: jax.Array, size: int) -> jax.Array:
    """Which token each place of a ring holds `(batch, size)` once token `last` `(batch,)` entered; negative: none yet."""
    return last[:, None] - (last[:, None] - jnp.arange(size, dtype=jnp.int32)[None]) % size


class Cache(eqx.Module):
    """The cache of a whole model, as [`easyfn.init_cache`][] makes it and `forward` returns it.

    `layers` mirrors the model's layers. `segment_ids` says of every slot whether it holds padding (0), `positions` is the
    position of each row's next token, and `length` counts the slots written so far, padding included: one number, or
    one for each row, which then advance at their own speeds. A smaller `length` forgets what was written last, as long
    as every layer is a `KV`, or a `Ring` that was widened by as much.
    """

    layers: Any
    segment_ids: jax.Array  # [batch, max_length] int32
    positions: jax.Array  # [batch] int32
    length: jax.Array  # [] or [batch] int32
    batch_axes: tuple[int | None, ...] = eqx.field(static=True, default=())  # of every leaf of `layers`
    table: Any = None  # [batch, pages] int32, of a paged cache: the pages of each row, -1 where it has none


def reorder(cache: Cache, rows: Int[Array, " rows"] | Host) -> Cache:
    """The cache whose row `i` is row `rows[i]` of `cache`: rows may be left out, and said twice.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    logits, cache = ef.prefill(model, jnp.array([[1, 2, 3], [4, 5, 6]]), max_length=8)
    swapped = ef.reorder(cache, [1, 0])
    assert (swapped.layers[0].k[0] == cache.layers[0].k[1]).all()
    ```
    """
    rows = jnp.asarray(rows, jnp.int32)
    leaves, tree = jax.tree.flatten(cache.layers)
    if len(leaves) != len(cache.batch_axes):
        raise ValueError("reorder: the cache does not know its rows; make it with ef.init_cache or ef.prefill")
    taken = [
        x if axis is None else jnp.take(x, rows, axis=axis) for x, axis in zip(leaves, cache.batch_axes, strict=True)
    ]
    return dataclasses.replace(
        cache,
        layers=jax.tree.unflatten(tree, taken),
        segment_ids=jnp.take(cache.segment_ids, rows, axis=0),
        positions=jnp.take(cache.positions, rows, axis=0),
        length=jnp.take(cache.length, rows, axis=0) if cache.length.ndim else cache.length,
        table=None if cache.table is None else jnp.take(cache.table, rows, axis=0),
    )


def fork(cache: Cache, copies: int) -> Cache:
    """Every row of `cache` `copies` times, one after the other: a prompt that many rows share is run once.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    shared = jnp.array([[1, 2, 3]])
    _, cache = ef.prefill(model, shared, max_length=16)
    prompts = jnp.array([[1, 2, 3, 7], [1, 2, 3, 8]])
    out = ef.generate(model, prompts, cache=ef.fork(cache, 2), max_new_tokens=4)
    assert (out.sequences == ef.generate(model, prompts, max_new_tokens=4).sequences).all()
    ```
    """
    if copies == 1:
        return cache
    if cache.table is not None:
        raise ValueError(
            "fork: the copies of a row would write into the same pages; give each a row of `table` of its own"
        )
    return reorder(cache, jnp.repeat(jnp.arange(cache.segment_ids.shape[0]), copies))


def widen(cache: Cache, slots: int) -> Cache:
    """An empty cache whose rings keep `slots` more than their windows: so many tokens can be taken back."""

    def wider(node: Any) -> Any:
        if not isinstance(node, Ring):
            return node
        before = node.k.ndim - 2  # axes, more of them in a stacked run
        longer = lambda x: jnp.pad(x, [(0, slots if axis == before else 0) for axis in range(x.ndim)])
        segments = jnp.pad(node.segment_ids, [(0, 0)] * (node.segment_ids.ndim - 1) + [(0, slots)])
        return Ring(jax.tree.map(longer, node.k), jax.tree.map(longer, node.v), segments)

    layers = jax.tree.map(wider, cache.layers, is_leaf=lambda node: isinstance(node, Ring))
    return dataclasses.replace(cache, layers=layers)
