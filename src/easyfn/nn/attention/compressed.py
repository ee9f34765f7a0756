"""Attention with compressed keys (DeepSeek-V4, 2026): a query reads the tokens of a short window, and of what is before it
entries that stand for many tokens each, all of them or those that an indexer chooses.

There is one key for all heads, which is the value, too. What is read has its place turned into it, so the sum of it is turned
back by the place of the query.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ...core.tree import is_leaf
from ...core.weight import HALF, Slot, Weight, dense, shape_of, slots, take
from ..cache.cache import Held, attend_to, empty_kv, key_scores, layer_cache, stored
from ..context import Context, Mask, scores_at_once
from ..linear import Linear, declare
from ..norm import RMSNorm
from .compressor import Compressed, Compressor, Filled, empty_compressed, empty_windows, rotate_last
from .core import attend_here, split_heads
from .indexer import gathered


class CompressedMask(eqx.Module):
    """A [`easyfn.nn.Mask`][] of the keys of tokens, and behind them entries: a query sees those of its document that end with
    it or before and, where there is a choice, were chosen for it."""

    mask: Mask
    segments: jax.Array  # [batch, queries]
    number: jax.Array  # [batch, queries], in their document
    owner: jax.Array  # [batch, entries]
    ends: jax.Array  # [batch, entries]
    chosen: jax.Array | None  # [batch, queries, count]

    def rows(self, start: jax.Array, size: int) -> CompressedMask:
        part = lambda a: lax.dynamic_slice_in_dim(a, start, size, axis=1)
        chosen = None if self.chosen is None else part(self.chosen)
        mask = self.mask.rows(start, size)
        return CompressedMask(mask, part(self.segments), part(self.number), self.owner, self.ends, chosen)

    def padded(self, pad: int) -> CompressedMask:
        behind = lambda a: jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2))
        chosen = None if self.chosen is None else behind(self.chosen)
        mask = self.mask.padded(pad)
        return CompressedMask(mask, behind(self.segments), behind(self.number), self.owner, self.ends, chosen)

    def visible(self) -> jax.Array:
        seen = entries_seen(self.segments, self.number, self.owner, self.ends)
        if self.chosen is not None:
            row, query = jnp.ix_(jnp.arange(seen.shape[0]), jnp.arange(seen.shape[1]))
            picked = jnp.zeros_like(seen).at[row[..., None], query[..., None], self.chosen].set(True)
            seen = seen & picked
        return jnp.concatenate([self.mask.visible(), seen], axis=-1)


def entries_seen(segments: jax.Array, number: jax.Array, owner: jax.Array, ends: jax.Array) -> jax.Array:
    """Boolean `(batch, queries, entries)`, before any choice."""
    return (segments[..., None] == owner[:, None]) & (ends[:, None] <= number[..., None])


class EntryIndexer(eqx.Module):
    """Chooses entries for queries by entries of its own, smaller ones of the same windows: `sum_h w_h relu(q_h . k)`. No gradient
    goes through the choice. Queries are made of the latent of the layer's queries, and `rope` names their table.

    Called with `(x, latent, context, filled, cache)`, it returns the numbers of the chosen entries `(batch, seq, topk)`, or
    `None` where there are no more than `topk`, and its compressor's cache.
    """

    compressor: Compressor
    q_b_proj: Linear
    weights_proj: Linear
    heads: int = eqx.field(static=True)
    topk: int = eqx.field(static=True)
    rope: str = eqx.field(static=True)

    def __init__(
        self, hidden_size: int, q_lora_rank: int, compressor: Compressor, *, heads: int, topk: int, rope: str
    ) -> None:
        if compressor.dim < (turned := _turned(compressor)):
            raise ValueError(
                f"EntryIndexer: {turned} numbers of a head are rotated, and an index head has {compressor.dim}"
            )
        self.compressor = compressor
        self.q_b_proj = Linear(q_lora_rank, heads * compressor.dim, axes=("heads", None))
        self.weights_proj = Linear(hidden_size, heads, axes=(None, "embed"))
        self.heads = heads
        self.topk = topk
        self.rope = rope

    def __call__(
        self, x: jax.Array, latent: jax.Array, context: Context, filled: Filled, cache: Compressed | None
    ) -> tuple[jax.Array | None, Compressed | None]:
        assert context.rope is not None
        x, latent = lax.stop_gradient((x, latent))
        keys, cache = self.compressor(x, filled, cache)
        if keys.shape[2] <= self.topk:
            return None, cache
        q = rotate_last(split_heads(self.q_b_proj(latent), self.heads), context.rope[self.rope])
        weights = jnp.swapaxes(self.weights_proj(x).astype(jnp.float32), 1, 2)
        return self._best(q, weights, keys, context.segment_ids, filled, scores_at_once(context.runtime)), cache

    def _best(
        self, q: jax.Array, weights: jax.Array, keys: Held, segments: jax.Array, filled: Filled, chunk: int
    ) -> jax.Array:
        """In slices of queries where the scores are many."""
        batch, heads, length, dim = q.shape

        def best(q: jax.Array, weights: jax.Array, segments: jax.Array, number: jax.Array) -> jax.Array:
            scores = key_scores(keys, q.reshape(batch, 1, -1, dim)).reshape(batch, heads, q.shape[2], -1)
            total = jnp.einsum("bhqk,bhq->bqk", jax.nn.relu(scores), weights)
            seen = entries_seen(segments, number, filled.owner, filled.ends)
            return lax.top_k(jnp.where(seen, total, -jnp.inf), self.topk)[1]

        size = batch * heads * length * keys.shape[2]
        if size <= chunk or length == 1:
            return best(q, weights, segments, filled.number)
        rows = max(16, length * chunk // size)
        pad = -length % rows
        along = [(q, 2), (weights, 2), (segments, 1), (filled.number, 1)]
        wide = [(jnp.pad(a, [(0, pad if i == axis else 0) for i in range(a.ndim)]), axis) for a, axis in along]

        def some(start: jax.Array) -> jax.Array:
            return best(*(lax.dynamic_slice_in_dim(a, start, rows, axis=axis) for a, axis in wide))

        found = lax.map(some, jnp.arange(0, length + pad, rows))
        return jnp.moveaxis(found, 0, 1).reshape(batch, length + pad, -1)[:, :length]


class CompressedAttention(eqx.Module):
    """Self attention to a window of `window` tokens and, with a `compressor`, to entries of what is before, which an `indexer`
    may choose. Names of tensors are those of DeepSeek-V4.

    - Queries are made of a latent of `q_lora_rank` numbers and normed head by head; key and value are one vector of `head_dim`
      numbers for all heads. `rope` names the table that turns their last numbers.
    - The heads' answers go through `o_a_proj` in `o_groups` groups, each with rows of its own of the matrix, `o_lora_rank` of
      them, and then all through `o_b_proj`.
    - Each head has a `sinks`, a score that takes its share of every softmax and says nothing.
    """

    q_a_proj: Linear
    q_a_norm: RMSNorm
    q_b_proj: Linear
    q_b_norm: RMSNorm
    kv_proj: Linear
    kv_norm: RMSNorm
    o_a_proj: Linear
    o_b_proj: Linear
    sinks: Weight
    compressor: Compressor | None
    indexer: EntryIndexer | None
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    rope: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        q_lora_rank: int,
        o_groups: int,
        o_lora_rank: int,
        window: int,
        rope: str,
        eps: float,
        compressor: Compressor | None = None,
        indexer: EntryIndexer | None = None,
        dropout: float = 0.0,
    ) -> None:
        if num_heads % o_groups:
            raise ValueError(f"CompressedAttention: {num_heads} heads do not make o_groups={o_groups} equal groups")
        self.q_a_proj = Linear(hidden_size, q_lora_rank, axes=(None, "embed"))
        self.q_a_norm = RMSNorm(q_lora_rank, eps, float32=HALF)
        self.q_b_proj = Linear(q_lora_rank, num_heads * head_dim, axes=("heads", None))
        self.q_b_norm = RMSNorm(head_dim, eps, affine=False)
        self.kv_proj = Linear(hidden_size, head_dim, axes=(None, "embed"))
        self.kv_norm = RMSNorm(head_dim, eps, float32=HALF)
        self.o_a_proj = Linear(num_heads * head_dim // o_groups, o_groups * o_lora_rank, axes=("heads", None))
        self.o_b_proj = Linear(o_groups * o_lora_rank, hidden_size, axes=("embed", "heads"))
        self.sinks = declare(num_heads)
        self.compressor = compressor
        self.indexer = indexer
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.groups = o_groups
        self.window = window
        self.rope = rope
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "batch seq in_"], context: Context, cache: Any = None
    ) -> tuple[Float[Array, "batch seq out"], Any, Float[Array, "batch heads seq keys"] | None]:
        assert context.rope is not None
        cos, sin = context.rope[self.rope]
        latent = self.q_a_norm(self.q_a_proj(x))
        q = rotate_last(self.q_b_norm(split_heads(self.q_b_proj(latent), self.num_heads)), (cos, sin))
        kv = rotate_last(self.kv_norm(self.kv_proj(x))[:, None], (cos, sin))
        parts = {"window": cache} if self.compressor is None or cache is None else dict(cache)
        parts["window"], keys, _, mask = attend_to(parts.get("window"), kv, kv, context, self.window)
        if self.compressor is not None:
            keys, mask = self._with_entries(x, latent, context, keys, mask, parts)
        out, weights = attend_here(
            q,
            keys,
            keys,
            mask,
            scale=self.head_dim**-0.5,
            sinks=dense(self.sinks),
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        out = rotate_last(out, (cos, -sin))
        cache = None if cache is None else parts["window"] if self.compressor is None else parts
        return self.o_b_proj(self._grouped(out)), cache, weights

    def _with_entries(
        self, x: jax.Array, latent: jax.Array, context: Context, keys: Held, mask: Mask, parts: dict[str, Any]
    ) -> tuple[Held, CompressedMask]:
        """The keys with entries behind them, and the mask of all; `parts` of the cache are brought up to date."""
        assert self.compressor is not None
        filled = Filled.of(context, self.compressor.rate, parts.get("windows"))
        entries, parts["entries"] = self.compressor(x, filled, parts.get("entries"))
        chosen, owner, ends = None, filled.owner, filled.ends
        if self.indexer is not None:
            chosen, parts["index"] = self.indexer(x, latent, context, filled, parts.get("index"))
        parts["windows"] = filled.kept
        if chosen is not None and x.shape[1] == 1 and not filled.here and not context.wants("attentions"):
            pick = chosen[:, 0]  # one query reads its entries only
            entries, chosen = gathered(entries, pick), None
            owner, ends = (jnp.take_along_axis(a, pick, axis=1) for a in (owner, ends))
        seen = CompressedMask(mask, context.segment_ids, filled.number, owner, ends, chosen)
        return _joined(keys, entries), seen

    def _grouped(self, out: jax.Array) -> jax.Array:
        """The heads' answers `(batch, heads, seq, dim)` through the rows of their group: `(batch, seq, groups * rank)`."""
        batch, _, length, _ = out.shape
        weight, rows = self.o_a_proj.weight, shape_of(self.o_a_proj.weight)[0]
        # Of each group its rows only: a product with all of them would be as many times the work as there are groups.
        plain = weight if is_leaf(weight) else take(weight, jnp.arange(rows))
        w = plain.reshape(self.groups, rows // self.groups, -1).astype(out.dtype)
        x = jnp.moveaxis(jnp.swapaxes(out, 1, 2).reshape(batch, length, self.groups, -1), 2, 0)
        y = lax.dot_general(
            x.reshape(self.groups, batch * length, -1),
            w,
            (((2,), (2,)), ((0,), (0,))),
            preferred_element_type=jnp.float32,
        )
        return jnp.swapaxes(y, 0, 1).reshape(batch, length, rows).astype(out.dtype)


def _turned(compressor: Compressor) -> int:
    """How many numbers of a head its table turns."""
    return int(compressor.rope_dim * compressor.rope_parameters.get("partial_rotary_factor", 1.0))


def _joined(keys: Held, entries: Held) -> Held:
    """Keys and behind them entries: arrays, or both in the form of one that holds codes."""
    if isinstance(keys, jax.Array) and isinstance(entries, jax.Array):
        return jnp.concatenate([keys, entries.astype(keys.dtype)], axis=2)
    if isinstance(keys, jax.Array):
        keys = stored(entries, keys)
    elif isinstance(entries, jax.Array):
        entries = stored(keys, entries)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), keys, entries)


@slots.register(CompressedAttention)
def _(layer: CompressedAttention) -> dict[str, Slot]:
    return {"sinks": Slot("other", ("heads",), "zeros", HALF)}


@layer_cache.register(CompressedAttention)
def _(layer: CompressedAttention, batch_size: int, max_length: int, dtype: Any) -> Any:
    window = empty_kv(batch_size, 1, layer.head_dim, max_length, layer.window, dtype)
    if layer.compressor is None:
        return window
    count = max(max_length // layer.compressor.rate, 1)
    found: dict[str, Any] = {"window": window, "windows": empty_windows(batch_size, count)}
    found["entries"] = empty_compressed(layer.compressor, batch_size, count, dtype)
    if layer.indexer is not None:
        found["index"] = empty_compressed(layer.indexer.compressor, batch_size, count, dtype)
    return found
