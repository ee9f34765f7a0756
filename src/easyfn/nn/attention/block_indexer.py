"""Sparse attention by blocks (Qwen4-Exp, 2026): an indexer scores means of neighbouring keys, and a query reads the tokens of
the best blocks, and those after the last whole block.

A block is `ratio` tokens of a document, padding not counted. Its key is the mean of theirs, normed and rotated to the place of
the first; its score for a query `sum_h relu(q_h . k)`. No gradient goes through the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.frozen import Frozen
from ..cache.axes import cache_axes
from ..cache.cache import key_scores, layer_cache, rewindable, write
from ..context import Context, Mask, scores_at_once
from ..linear import Linear
from ..norm import RMSNorm
from .core import split_heads
from .rope import rope_table, rotate


class IndexKeys(eqx.Module):
    """The index key of every slot and its position."""

    keys: jax.Array  # [batch, 1, slots, dim]
    positions: jax.Array  # [batch, slots]


@cache_axes.register(IndexKeys)
def _(cache: IndexKeys) -> tuple[str, ...]:
    return "batch heads slots dim", "batch slots"


@rewindable.register(IndexKeys)
def _(cache: IndexKeys) -> bool:
    return True


def _kept(cache: IndexKeys, keys: jax.Array, places: jax.Array, slots: jax.Array) -> IndexKeys:
    """With the keys of a pass in their slots. A row of an engine may end in padding beyond its last slot, which is dropped."""
    if slots.ndim == 1:
        return IndexKeys(write(cache.keys, keys, slots[0]), write(cache.positions, places, slots[0], 1))
    row = jnp.arange(slots.shape[0], dtype=jnp.int32)[:, None]
    return IndexKeys(
        cache.keys.at[row, 0, slots].set(keys[:, 0].astype(cache.keys.dtype), mode="drop"),
        cache.positions.at[row, slots].set(places, mode="drop"),
    )


def _wide(x: jax.Array, axis: int, width: int) -> jax.Array:
    """`x` with as many slots as a pass sees, which in an engine are those of whole pages: fewer than there are, or more."""
    x = lax.slice_in_dim(x, 0, min(width, x.shape[axis]), axis=axis)
    return jnp.pad(x, [(0, width - x.shape[axis]) if n == axis else (0, 0) for n in range(x.ndim)])


class ChosenBlocks(eqx.Module):
    """A [`easyfn.nn.Mask`][] of which each query sees the keys of the blocks that were chosen for it, and those from the number
    `tail` of its document on."""

    mask: Mask
    chosen: jax.Array  # [batch, queries, count], blocks
    tail: jax.Array  # [batch, queries]
    block: jax.Array  # [batch, keys], of each key; the number of blocks where it is in none
    number: jax.Array  # [batch, keys], in its document
    blocks: int = eqx.field(static=True)

    def rows(self, start: jax.Array, size: int) -> ChosenBlocks:
        part = lambda a: lax.dynamic_slice_in_dim(a, start, size, axis=1)
        mask = self.mask.rows(start, size)
        return ChosenBlocks(mask, part(self.chosen), part(self.tail), self.block, self.number, self.blocks)

    def padded(self, pad: int) -> ChosenBlocks:
        chosen, tail = jnp.pad(self.chosen, ((0, 0), (0, pad), (0, 0))), jnp.pad(self.tail, ((0, 0), (0, pad)))
        return ChosenBlocks(self.mask.padded(pad), chosen, tail, self.block, self.number, self.blocks)

    def visible(self) -> jax.Array:
        row, query = jnp.ix_(jnp.arange(self.chosen.shape[0]), jnp.arange(self.chosen.shape[1]))
        picked = jnp.zeros((*self.chosen.shape[:2], self.blocks + 1), bool)
        picked = picked.at[row[..., None], query[..., None], self.chosen].set(True)
        read = jax.vmap(lambda picked, block: picked[:, block])(picked, self.block)
        return self.mask.visible() & (read | (self.number[:, None, :] >= self.tail[:, :, None]))


class BlockIndexer(eqx.Module):
    """Chooses blocks of keys for the queries of a [`easyfn.nn.GatedAttention`][].

    `budget` tokens in blocks of `ratio` are chosen for a query. `rope_parameters`, `rope_dim` and `limit` are those of the
    table `context.rope[rope]`, with which queries are rotated: blocks are at places that the table of a pass may not have.

    Called with `(x, context, cache)`, it returns a function that makes a mask one of chosen keys, or `None` where all are
    chosen, and the cache.
    """

    index_qk_proj: Linear
    q_layernorm: RMSNorm
    k_layernorm: RMSNorm
    heads: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    topk: int = eqx.field(static=True)
    ratio: int = eqx.field(static=True)
    rope: str = eqx.field(static=True)
    rope_parameters: Frozen = eqx.field(static=True)
    rope_dim: int = eqx.field(static=True)
    limit: int = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        *,
        heads: int,
        dim: int,
        budget: int,
        ratio: int,
        eps: float,
        rope_parameters: Mapping[str, Any],
        rope_dim: int,
        limit: int,
        rope: str = "default",
    ) -> None:
        if budget % ratio:
            raise ValueError(f"BlockIndexer: a budget of {budget} tokens is no number of blocks of {ratio}")
        turned = int(rope_dim * rope_parameters.get("partial_rotary_factor", 1.0))
        if turned > dim:
            raise ValueError(f"BlockIndexer: {turned} entries of a head are rotated, and an index head has {dim}")
        self.index_qk_proj = Linear(hidden_size, (heads + 1) * dim, axes=(None, "embed"))
        self.q_layernorm, self.k_layernorm = RMSNorm(dim, eps, offset=1.0), RMSNorm(dim, eps, offset=1.0)
        self.heads, self.dim, self.topk, self.ratio = heads, dim, budget // ratio, ratio
        self.rope, self.rope_parameters, self.rope_dim, self.limit = rope, Frozen(rope_parameters), rope_dim, limit

    def __call__(
        self, x: jax.Array, context: Context, cache: IndexKeys | None = None
    ) -> tuple[Callable[[Mask], Any] | None, IndexKeys | None]:
        assert context.rope is not None
        if context.position_ids.ndim != 2:
            raise ValueError("BlockIndexer: blocks have one position each, and positions of several axes were given")
        both = self.index_qk_proj(lax.stop_gradient(x))
        q, k = jnp.split(both, [self.heads * self.dim], axis=-1)
        q = rotate(self.q_layernorm(split_heads(q, self.heads)), context.rope[self.rope])
        keys, positions, segments = k[:, None], context.position_ids, context.segment_ids
        if cache is not None:
            cache = _kept(cache, keys, jnp.broadcast_to(positions, segments.shape).astype(jnp.int32), context.slots)
            if not context.fresh:
                assert context.cached_segment_ids is not None
                segments = context.cached_segment_ids
                keys, positions = (
                    _wide(x, axis, segments.shape[1]) for x, axis in ((cache.keys, 2), (cache.positions, 1))
                )
        count = keys.shape[2] // self.ratio
        if count <= self.topk:
            return None, cache
        positions = jnp.broadcast_to(positions, segments.shape)
        number = _numbers(segments)
        block, last, total = self._blocks(segments, number, count)
        pooled = self._pooled(keys[:, 0], positions, number, block, count)
        if cache is None or context.fresh:
            own = number
        else:
            slots = jnp.broadcast_to(context.slots, context.segment_ids.shape)
            own = jnp.take_along_axis(number, slots, axis=1)
        ends = jnp.where(
            jnp.arange(count)[None] < total, jnp.take_along_axis(number, last, axis=1), jnp.iinfo(jnp.int32).max
        )
        owner = jnp.take_along_axis(segments, last, axis=1)
        chosen = self._best(q, pooled, context.segment_ids, own, owner, ends, scores_at_once(context.runtime))
        tail = (own + 1) // self.ratio * self.ratio
        return lambda mask: ChosenBlocks(mask, chosen, tail, block, number, count), cache

    def _blocks(self, segments: jax.Array, number: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of each key its block `(batch, keys)`, or `count`; of each block its last key `(batch, count)`; how many there are
        `(batch, 1)`."""
        ends = (segments > 0) & (number % self.ratio == self.ratio - 1)
        upto = jnp.cumsum(ends, axis=1, dtype=jnp.int32)
        index = upto - ends  # of the block that ends here or next
        row = jnp.arange(segments.shape[0])[:, None]
        slot = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32)[None], segments.shape)
        last = jnp.zeros((segments.shape[0], count), jnp.int32)
        last = last.at[row, jnp.where(ends, index, count)].set(slot, mode="drop")
        total = upto[:, -1:]
        end = jnp.take_along_axis(last, jnp.minimum(index, count - 1), axis=1)
        of = lambda a: jnp.take_along_axis(a, end, axis=1)
        mine = (of(segments) == segments) & (of(number) // self.ratio == number // self.ratio)
        return jnp.where((segments > 0) & (index < total) & mine, index, count), last, total

    def _pooled(
        self, keys: jax.Array, positions: jax.Array, number: jax.Array, block: jax.Array, count: int
    ) -> jax.Array:
        """The keys of the blocks `(batch, 1, count, dim)`, rotated."""
        row = jnp.arange(keys.shape[0])[:, None]
        mean = jnp.zeros((keys.shape[0], count, self.dim), jnp.float32)
        mean = mean.at[row, block].add(keys.astype(jnp.float32), mode="drop") / self.ratio
        first = jnp.where(number % self.ratio == 0, block, count)
        place = jnp.zeros((keys.shape[0], count), positions.dtype).at[row, first].set(positions, mode="drop")
        table = rope_table(self.rope_parameters, self.rope_dim, self.limit, place)
        return rotate(self.k_layernorm(mean.astype(keys.dtype))[:, None], table)

    def _best(
        self,
        q: jax.Array,
        pooled: jax.Array,
        segments: jax.Array,
        own: jax.Array,
        owner: jax.Array,
        ends: jax.Array,
        chunk: int,
    ) -> jax.Array:
        """The best blocks `(batch, queries, topk)` of those that ended before each query, in slices where scores are many."""
        batch, heads, length, _ = q.shape

        def best(q: jax.Array, segments: jax.Array, own: jax.Array) -> jax.Array:
            scores = key_scores(pooled, q.reshape(batch, 1, -1, self.dim)).reshape(batch, heads, q.shape[2], -1)
            total = jnp.sum(jax.nn.relu(scores), axis=1)  # without their common factor
            seen = (owner[:, None] == segments[..., None]) & (ends[:, None] <= own[..., None])
            return lax.top_k(jnp.where(seen, total, -jnp.inf), self.topk)[1]

        size = batch * heads * length * pooled.shape[2]
        if size <= chunk or length == 1:
            return best(q, segments, own)
        rows = max(16, length * chunk // size)
        pad = -length % rows
        q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0)))
        segments, own = (jnp.pad(a, ((0, 0), (0, pad))) for a in (segments, own))

        def some(start: jax.Array) -> jax.Array:
            part = lambda a, axis: lax.dynamic_slice_in_dim(a, start, rows, axis=axis)
            return best(part(q, 2), part(segments, 1), part(own, 1))

        found = lax.map(some, jnp.arange(0, length + pad, rows))
        return jnp.moveaxis(found, 0, 1).reshape(batch, length + pad, -1)[:, :length]


def _numbers(segments: jax.Array) -> jax.Array:
    """The number from 0 of each token in its document `(batch, seq)`, padding not counted. Of several documents in a row the
    segments must grow along it."""
    number = jnp.cumsum(segments > 0, axis=1, dtype=jnp.int32) - 1
    newest = lax.cummax(segments, axis=1)
    begins = newest != jnp.pad(newest[:, :-1], ((0, 0), (1, 0)))
    return jnp.maximum(number - lax.cummax(jnp.where(begins, number, 0), axis=1), 0)


@layer_cache.register(BlockIndexer)
def _(layer: BlockIndexer, batch_size: int, max_length: int, dtype: Any) -> IndexKeys:
    kind = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32  # means of codes would be none
    return IndexKeys(
        jnp.zeros((batch_size, 1, max_length, layer.dim), kind), jnp.zeros((batch_size, max_length), jnp.int32)
    )
