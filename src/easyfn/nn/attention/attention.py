"""Attention in pure JAX: float32 softmax, grouped queries, windows, soft cap, sinks and bias, lean in memory.

The query heads of a group are stacked on the rows of their key head, so that both products are plain batched
matmuls: twice as fast as `jax.nn.dot_product_attention` on CPU, forward and backward.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ..cache.cache import KV, Held, Ring, attend_to, empty_kv, key_scores, layer_cache, value_sums
from ..context import Context, Mask, Runtime
from ..linear import Linear
from ..norm import RMSNorm
from .rope import rotate

MASKED = -1e30  # finite: a row that sees nothing becomes uniform, never NaN


def attend(
    q: jax.Array,
    k: Held,
    v: Held,
    mask: Mask | None,
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
    """Scaled dot product attention.

    `q`: `(batch, heads, queries, dim)`; `k`, `v`: `(batch, kv_heads, keys, dim)`; `bias`: `(1 or batch, heads, queries,
    keys)`; `sinks`: `(heads,)`, one extra score per head that takes part in the softmax and has no value. Returns
    `(batch, heads, queries, dim)` and, if `weights`, the attention weights `(batch, heads, queries, keys)`.

    When the score matrix has more than `runtime.attention_chunk` entries it is made in slices of queries, and again in
    the backward pass, so memory grows with the number of keys only. On a mesh that splits the sequence, keys are passed
    round between devices, or traded for heads, as `runtime.context_parallel` says; weights are not, so there XLA decides.
    """
    from ..parallel.context import Operands, attend_across, sequence_split

    if not weights and isinstance(k, jax.Array) and (axes := sequence_split(q, k, runtime)):
        operands = Operands(q, k, v, bias, sinks)
        out = attend_across(operands, mask, key, axes, runtime, scale=scale, softcap=softcap, dropout_rate=dropout_rate)
        return out, None
    batch, heads, length, _ = q.shape
    chunk = runtime.attention_chunk
    size = batch * heads * length * k.shape[2]
    if size <= chunk or weights or length == 1:
        return _attend(q, k, v, mask, bias, scale, softcap, sinks, weights, dropout_rate, key)

    rows = max(16, length * chunk // size)
    count = -(-length // rows)
    pad = count * rows - length

    @jax.checkpoint
    def some(start: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(padded_q, start, rows, axis=2)
        part_bias = None if padded_bias is None else lax.dynamic_slice_in_dim(padded_bias, start, rows, axis=2)
        part_mask = None if padded_mask is None else padded_mask.rows(start, rows)
        part_key = None if key is None else jax.random.fold_in(key, start)
        return _attend(part, k, v, part_mask, part_bias, scale, softcap, sinks, False, dropout_rate, part_key)[0]

    padded_q = jnp.pad(q, ((0, 0), (0, 0), (0, pad), (0, 0)))
    padded_bias = bias if bias is None or not pad else jnp.pad(bias, ((0, 0), (0, 0), (0, pad), (0, 0)))
    padded_mask = mask
    if mask is not None and pad:
        padded_mask = Mask(
            jnp.pad(mask.query_slots, ((0, 0),) * (mask.query_slots.ndim - 1) + ((0, pad),)),
            jnp.pad(mask.query_segments, ((0, 0), (0, pad))),
            mask.key_slots,
            mask.key_segments,
            mask.causal,
            mask.window,
        )
    out = lax.map(some, jnp.arange(count) * rows)
    out = jnp.moveaxis(out, 0, 2).reshape(batch, heads, count * rows, v.shape[-1])
    return out[:, :, :length], None


def scores_of(
    q: jax.Array, k: Held, mask: Mask | None, bias: jax.Array | None, scale: float, softcap: float | None
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


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`(batch, seq, heads * dim)` to `(batch, heads, seq, dim)`."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], heads, -1), 1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
    """`(batch, heads, seq, dim)` to `(batch, seq, heads * dim)`."""
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


class Attention(eqx.Module):
    """Multi-head self attention with rotary positions and grouped key heads, as Llama and its kin have it.

    `rope` names the entry of `context.rope` to rotate with (`None`: no rotary positions).
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True)
    rope: str | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: RMSNorm | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        rope: str | None = "default",
        dropout: float = 0.0,
    ) -> None:
        if num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads={num_heads} is no multiple of num_key_value_heads={num_kv_heads}")
        self.q_proj = Linear(hidden_size, num_heads * head_dim, qkv_bias, axes=("heads", "embed"))
        self.k_proj = Linear(hidden_size, num_kv_heads * head_dim, qkv_bias, axes=("kv_heads", "embed"))
        self.v_proj = Linear(hidden_size, num_kv_heads * head_dim, qkv_bias, axes=("kv_heads", "embed"))
        self.o_proj = Linear(num_heads * head_dim, hidden_size, out_bias, axes=("embed", "heads"))
        self.q_norm = qk_norm
        self.k_norm = qk_norm
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.window = window
        self.softcap = softcap
        self.rope = rope
        self.dropout = dropout

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, jax.Array | None]:
        q = split_heads(self.q_proj(x), self.num_heads)
        k = split_heads(self.k_proj(x), self.num_kv_heads)
        v = split_heads(self.v_proj(x), self.num_kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            assert context.rope is not None
            q, k = rotate(q, context.rope[self.rope]), rotate(k, context.rope[self.rope])
        cache, keys, values, mask = attend_to(cache, k, v, context, self.window)
        out, weights = attend(
            q,
            keys,
            values,
            mask,
            scale=self.scale,
            bias=context.bias,
            softcap=self.softcap,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        return self.o_proj(merge_heads(out)), cache, weights


@layer_cache.register(Attention)
def _(layer: Attention, batch_size: int, max_length: int, dtype) -> KV | Ring:
    return empty_kv(batch_size, layer.num_kv_heads, layer.head_dim, max_length, layer.window, dtype)
