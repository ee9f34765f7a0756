"""What queries and keys score, masked: the matrix that a softmax is taken of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..cache.cache import Held, key_scores

MASKED = -1e30  # finite: a row that sees nothing becomes uniform, never NaN


def scores_of(
    q: jax.Array, k: Held, mask: Any, bias: jax.Array | None, scale: float, softcap: float | None
) -> jax.Array:
    """Float32 scores `(batch, kv_heads, group, queries, keys)` of `q` `(batch, kv_heads, group, queries, dim)`; `bias` is
    `(1 or batch, kv_heads, group, queries, keys)`."""
    batch, kv, group, length, dim = q.shape
    # [batch, kv, group * length, dim]: one matmul per key head. Keys and values keep their shape: behind a reshape, XLA on CPU
    # writes a cache twice (once per shape) and copies it four times per token.
    queries = q.reshape(batch, kv, group * length, dim)
    scores = key_scores(k, queries).reshape(batch, kv, group, length, k.shape[2]) * scale
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    return scores if mask is None else jnp.where(mask.visible()[:, None, None], scores, MASKED)
