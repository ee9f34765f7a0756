"""Attention on one device, in pure JAX: float32 softmax, grouped queries, windows, soft cap, sinks and bias, lean in memory.

The query heads of a group are stacked on the rows of their key head, so that both products are plain batched
matmuls: twice as fast as `jax.nn.dot_product_attention` on CPU, forward and backward.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..cache.cache import Held, value_sums
from ..context import Mask, Runtime, scores_at_once
from .fused import fits, fused
from .scores import scores_of
from .slices import in_slices, in_window


def attend_here(
    q: jax.Array,
    k: Held,
    v: Held,
    mask: Any,
    *,
    scale: float,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    runtime: Runtime = Runtime(),
    weights: bool = False,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Scaled dot product attention of arrays that one device holds: arguments and results of [`easyfn.nn.attend`][].

    `mask` is a `Mask`, or what answers to the same methods: `rows`, `padded` and `visible`.

    When the score matrix has more entries than `scores_at_once` says it is made in slices of queries, and again in
    the backward pass, so memory grows with the number of keys only. Where queries see their own sequence, a slice is given
    no keys that a window or the causal order hides from all of it.
    """
    if weights or (key is not None and dropout_rate) or bias is not None or not fits(q, k, v, mask):
        return _plain(q, k, v, mask, sinks, scale, softcap, runtime, bias, weights, dropout_rate, key)
    return fused(_seen, q, k, v, mask, sinks, scale, softcap, runtime), None


def _seen(*args: Any) -> jax.Array:
    return _plain(*args)[0]


def _plain(
    q: jax.Array,
    k: Held,
    v: Held,
    mask: Any,
    sinks: jax.Array | None,
    scale: float,
    softcap: float | None,
    runtime: Runtime,
    bias: jax.Array | None = None,
    weights: bool = False,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    length, by_query = q.shape[2], q.shape[0] * q.shape[1] * k.shape[2]
    size, chunk = by_query * length, scores_at_once(runtime, by_query)
    if size <= chunk or weights or length == 1:
        return _attend(q, k, v, mask, bias, scale, softcap, sinks, weights, dropout_rate, key)

    def exact(q: jax.Array, k: Held, v: Held, mask: Any, bias: jax.Array | None, at: Any) -> jax.Array:
        part_key = None if key is None else jax.random.fold_in(key, at)
        return _attend(q, k, v, mask, bias, scale, softcap, sinks, False, dropout_rate, part_key)[0]

    own = isinstance(mask, Mask) and mask.of_itself()
    if own and mask.window is not None and mask.window < length:
        return in_window(exact, q, k, v, mask, bias, chunk), None
    if not (own and mask.causal):
        return in_slices(exact, q, k, v, mask, bias, chunk), None
    # Of a causal square half is hidden: in four parts 5/8 of it are computed. XLA may hold scores of all parts at once.
    count = min(4, -(-size // chunk))
    step = -(-length // count)
    parts = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        seen = mask.rows(start, stop - start).keys(0, stop)
        cut = None if bias is None else bias[:, :, start:stop, :stop]
        part = (q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], seen, cut)
        parts.append(in_slices(exact, *part, chunk // count, start))
    return jnp.concatenate(parts, axis=2), None


def _attend(q, k, v, mask, bias, scale, softcap, sinks, weights, dropout_rate, key):
    batch, heads, length, dim = q.shape
    kv, keys = k.shape[1], k.shape[2]
    group = heads // kv
    if bias is not None:
        bias = bias.reshape(bias.shape[0], kv, group, *bias.shape[2:])
    scores = scores_of(q.reshape(batch, kv, group, length, dim), k, mask, bias, scale, softcap)
    if sinks is None:
        probabilities = jax.nn.softmax(scores, axis=-1)
    else:
        sink = sinks.astype(jnp.float32).reshape(1, kv, group, 1, 1)
        top = lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sink))
        weight = jnp.exp(scores - top)
        probabilities = weight / (jnp.sum(weight, axis=-1, keepdims=True) + jnp.exp(sink - top))
    if key is not None and dropout_rate:
        keep = jax.random.bernoulli(key, 1.0 - dropout_rate, probabilities.shape)
        probabilities = jnp.where(keep, probabilities / (1.0 - dropout_rate), 0.0)
    mixed = value_sums(v, probabilities.reshape(batch, kv, group * length, keys), q.dtype)
    out = mixed.astype(q.dtype).reshape(batch, heads, length, v.shape[-1])
    return out, probabilities.reshape(batch, heads, length, keys).astype(q.dtype) if weights else None


def split_heads(x: Float[Array, "batch seq rows"], heads: int) -> Float[Array, "batch {heads} seq dim"]:
    """`(batch, seq, heads * dim)` to `(batch, heads, seq, dim)`."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], heads, -1), 1, 2)


def merge_heads(x: Float[Array, "batch heads seq dim"]) -> Float[Array, "batch seq heads*dim"]:
    """`(batch, heads, seq, dim)` to `(batch, seq, heads * dim)`."""
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)
