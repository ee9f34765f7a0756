"""Sparse attention by an indexer (DeepSeek-V3.2, 2025): a small attention beside the large one says which keys it reads.

Every key has one short index key. A query's index heads score them all, `sum_h w_h relu(q_h . k)`, and the layer attends to
the `topk` keys with the highest sums. No gradient goes through the choice.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..cache.cache import KV, Held, attend_to, empty_slots, key_scores, layer_cache
from ..context import Context, Mask, scores_at_once
from ..linear import Linear
from ..norm import LayerNorm
from .core import split_heads
from .rope import rotate


class Indexer(eqx.Module):
    """Chooses keys for the queries of a [`easyfn.nn.LatentAttention`][]. Names of tensors are those of DeepSeek-V3.2.

    - Queries are made of the latent of the layer's queries, of `q_lora_rank` entries.
    - `rope` names the entry of `context.rope`, which rotates the first entries of queries and keys; `interleaved`: pairs are
      neighbours, not halves.

    Called with `(x, latent, context, cache)`, it returns the numbers of the chosen keys `(batch, seq, topk)`, or `None`
    where there are no more than `topk`, and the cache: a `KV` of one head, each index key cut in two.
    """

    wq_b: Linear
    wk: Linear
    k_norm: LayerNorm
    weights_proj: Linear
    heads: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    topk: int = eqx.field(static=True)
    rope: str = eqx.field(static=True)
    interleaved: bool = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        q_lora_rank: int,
        *,
        heads: int,
        dim: int,
        topk: int,
        rope: str = "default",
        interleaved: bool = False,
    ) -> None:
        self.wq_b = Linear(q_lora_rank, heads * dim, axes=("heads", None))
        self.wk = Linear(hidden_size, dim, axes=(None, "embed"))
        self.k_norm = LayerNorm(dim, 1e-6)
        self.weights_proj = Linear(hidden_size, heads, axes=(None, "embed"))
        self.heads = heads
        self.dim = dim
        self.topk = topk
        self.rope = rope
        self.interleaved = interleaved

    def __call__(
        self, x: jax.Array, latent: jax.Array, context: Context, cache: Any = None
    ) -> tuple[jax.Array | None, Any]:
        assert context.rope is not None
        x, latent = lax.stop_gradient((x, latent))
        turned = lambda part: rotate(part, context.rope[self.rope], self.interleaved)  # type: ignore[index]
        q, k = turned(split_heads(self.wq_b(latent), self.heads)), turned(self.k_norm(self.wk(x))[:, None])
        cache, *keys, mask = attend_to(cache, *_halves(k), context, None)
        if keys[0].shape[2] <= self.topk:
            return None, cache
        weights = self.weights_proj(x).astype(jnp.float32) * (self.heads * self.dim) ** -0.5
        return self._chosen(q, jnp.swapaxes(weights, 1, 2), keys, mask, scores_at_once(context.runtime)), cache

    def _chosen(self, q: jax.Array, weights: jax.Array, keys: list[Held], mask: Mask, chunk: int) -> jax.Array:
        """`q` `(batch, heads, seq, dim)`, `weights` `(batch, heads, seq)`; in slices of queries where the scores are many."""
        batch, heads, length, _ = q.shape

        def best(q: jax.Array, weights: jax.Array, mask: Mask) -> jax.Array:
            rows = [part.reshape(batch, 1, -1, part.shape[-1]) for part in _halves(q)]
            scores = key_scores(keys[0], rows[0]) + key_scores(keys[1], rows[1])
            scores = jax.nn.relu(scores).reshape(batch, heads, q.shape[2], -1)
            total = jnp.einsum("bhqk,bhq->bqk", scores, weights)
            return lax.top_k(jnp.where(mask.visible(), total, -jnp.inf), self.topk)[1]

        size = batch * heads * length * keys[0].shape[2]
        if size <= chunk or length == 1:
            return best(q, weights, mask)
        rows = max(16, length * chunk // size)
        pad = -length % rows
        q, weights = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0))), jnp.pad(weights, ((0, 0), (0, 0), (0, pad)))
        mask = mask.padded(pad)

        def some(start: jax.Array) -> jax.Array:
            part = lambda a: lax.dynamic_slice_in_dim(a, start, rows, axis=2)
            return best(part(q), part(weights), mask.rows(start, rows))

        found = lax.map(some, jnp.arange(0, length + pad, rows))
        return jnp.moveaxis(found, 0, 1).reshape(batch, length + pad, -1)[:, :length]


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, second = jnp.split(x, [x.shape[-1] // 2], axis=-1)
    return first, second


@layer_cache.register(Indexer)
def _(layer: Indexer, batch_size: int, max_length: int, dtype: Any) -> KV:
    room = lambda width: empty_slots((batch_size, 1, max_length, width), dtype)
    return KV(room(layer.dim // 2), room(layer.dim - layer.dim // 2))


class Chosen(eqx.Module):
    """A [`easyfn.nn.Mask`][] of which each query sees the keys that were chosen for it: `keys` `(batch, queries, count)`."""

    mask: Mask
    keys: jax.Array

    def rows(self, start: jax.Array, size: int) -> Chosen:
        return Chosen(self.mask.rows(start, size), lax.dynamic_slice_in_dim(self.keys, start, size, axis=1))

    def padded(self, pad: int) -> Chosen:
        return Chosen(self.mask.padded(pad), jnp.pad(self.keys, ((0, 0), (0, pad), (0, 0))))

    def visible(self) -> jax.Array:
        seen = self.mask.visible()
        row, query = jnp.ix_(jnp.arange(self.keys.shape[0]), jnp.arange(self.keys.shape[1]))
        picked = jnp.zeros((*self.keys.shape[:2], seen.shape[-1]), bool)
        return seen & picked.at[row[..., None], query[..., None], self.keys].set(True)


def gathered(held: Held, keys: jax.Array) -> Any:
    """Of what is held, `(batch, heads, slots, ...)`, the slots `keys` `(batch, count)` of each row."""

    def one(x: jax.Array) -> jax.Array:
        index = keys.reshape(keys.shape[0], 1, -1, *[1] * (x.ndim - 3))
        return jnp.take_along_axis(x, index, axis=2, mode="clip")

    return jax.tree.map(one, held)


def gathered_mask(mask: Mask, keys: jax.Array) -> Mask:
    """`mask` of the keys in the slots `keys` `(batch, count)`."""
    slots = jnp.broadcast_to(mask.key_slots, mask.key_segments.shape)
    pick = lambda x: jnp.take_along_axis(x, keys, axis=1, mode="clip")
    return Mask(mask.query_slots, mask.query_segments, pick(slots), pick(mask.key_segments), mask.causal, mask.window)
