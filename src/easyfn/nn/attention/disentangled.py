"""Disentangled attention (He et al. 2021, arXiv 2006.03654): content and relative position have projections of their own."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..context import Context, dropout, encoder_mask
from ..linear import Linear
from .attention import attend
from .core import merge_heads, split_heads

TERMS = ("c2p", "p2c")


def log_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each relative position `query - key`: itself when nearer than `buckets // 2`, logarithmic when farther.

    Distances of `max_distance` and more go on beyond the last bucket. `buckets` below 1: no buckets, distances as they are.

    The logarithms are float32, as those of transformers' `make_log_bucket_position`: a boundary depends on the last bit.
    """
    if buckets < 1 or max_distance < 1:
        return distance
    half = buckets // 2
    near = np.abs(distance) <= half
    share = np.where(near, half, np.abs(distance)).astype(np.float32) / np.float32(half)
    steps = np.log(share) / np.log(np.float32((max_distance - 1) / half))
    far = np.ceil(steps * np.float32(half - 1)) + half
    return np.where(near, distance, far * np.sign(distance)).astype(np.int64)


def skewed(scores: jax.Array) -> jax.Array:
    """`(..., length, length)` from `(..., length, 2 * length)`: column `j` of row `i` is what was in column
    `length - 1 - i + j`, a diagonal made a column by slices alone, so that the gradient needs no scatter."""
    *lead, length, width = scores.shape
    rows = scores.reshape(*lead, length * width)
    rows = jax.lax.slice_in_dim(rows, length - 1, length - 1 + length * (width - 1), axis=len(lead))
    return rows.reshape(*lead, length, width - 1)[..., :length]


class DisentangledAttention(eqx.Module):
    """Multi-head attention of an encoder whose scores have up to three terms, without its output projection (DeBERTa).

    Beside the product of query and key: that of the query and the embedding of the relative position (`"c2p"` in `terms`),
    and that of the key and it (`"p2c"`). These embeddings are `context.relative`, `(2 * span, embed)`, row `span + d` for the
    query's distance `d` from the key (in `buckets`, if there are some); without them the terms are left out. They have
    projections of their own, or those of queries and keys if `shared`. Scores are divided by `sqrt(dim * terms)`.

    `relative_dropout` is the rate on those embeddings in training, `dropout` that on the weights.
    """

    query_proj: Linear
    key_proj: Linear
    value_proj: Linear
    pos_key_proj: Linear | None
    pos_query_proj: Linear | None
    heads: int = eqx.field(static=True)
    terms: tuple[str, ...] = eqx.field(static=True)
    buckets: int = eqx.field(static=True)
    max_distance: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    relative_dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        *,
        terms: tuple[str, ...] = TERMS,
        relative: bool = True,
        shared: bool = False,
        buckets: int = -1,
        max_distance: int = -1,
        dropout: float = 0.0,
        relative_dropout: float = 0.0,
    ) -> None:
        if hidden_size % heads:
            raise ValueError(f"hidden_size={hidden_size} is no multiple of num_attention_heads={heads}")
        if unknown := [t for t in terms if t not in TERMS]:
            raise ValueError(f"DisentangledAttention: a term is one of {', '.join(TERMS)}, not {unknown[0]!r}")
        if buckets == 1 or (buckets > 1 and max_distance - 1 <= buckets // 2):
            raise ValueError(
                f"position_buckets={buckets} with max_relative_positions={max_distance}: buckets are two or more, and "
                "distances must go on beyond half of them"
            )
        make = lambda: Linear(hidden_size, hidden_size, True, axes=("heads", "embed"))
        own = relative and not shared
        self.query_proj, self.key_proj, self.value_proj = make(), make(), make()
        self.pos_key_proj = make() if own and "c2p" in terms else None
        self.pos_query_proj = make() if own and "p2c" in terms else None
        self.heads = heads
        self.terms = tuple(terms)
        self.buckets = buckets
        self.max_distance = max_distance
        self.dropout = dropout
        self.relative_dropout = relative_dropout

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.query_proj, self.key_proj, self.value_proj))
        scale = (q.shape[-1] * (1 + len(set(self.terms)))) ** -0.5
        out, weights = attend(
            q,
            k,
            v,
            encoder_mask(context),
            scale=scale,
            bias=self.bias(q, k, context, scale),
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        return merge_heads(out), weights

    def bias(self, q: jax.Array, k: jax.Array, context: Context, scale: float) -> jax.Array | None:
        """The terms of the scores with positions, float32 `(batch, heads, queries, keys)`; `q`, `k`: `(batch, heads, seq, dim)`.

        Distances count places in the sequence, so padding moves both ends of one alike.
        """
        if context.relative is None or not self.terms:
            return None
        length, span = q.shape[2], context.relative.shape[0] // 2
        distance = np.arange(length - 1, -length - 1, -1)  # of query and key
        row = np.clip(log_buckets(distance, self.buckets, self.max_distance) + span, 0, 2 * span - 1)
        embeddings = dropout(context.relative, self.relative_dropout, context, 6)[None]

        def term(content: jax.Array, project: Linear, rows: np.ndarray) -> jax.Array:
            positions = split_heads(project(embeddings), self.heads)[0][:, rows]  # [heads, 2 * length, dim]
            scores = jnp.einsum("bhsd,hpd->bhsp", content, positions, preferred_element_type=jnp.float32)
            return skewed(scores) * scale

        found = []
        if "c2p" in self.terms:
            found.append(term(q, self.pos_key_proj or self.key_proj, row))
        if "p2c" in self.terms:
            backwards = np.concatenate([row[-2::-1], row[-1:]])  # a key's queries: from the farthest after it on
            found.append(jnp.swapaxes(term(k, self.pos_query_proj or self.query_proj, backwards), -1, -2))
        return sum(found[1:], found[0])
