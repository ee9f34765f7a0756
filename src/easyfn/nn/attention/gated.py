"""Attention whose output is gated by the layer's input (Qiu et al. 2025, arXiv 2505.06708), as Qwen3-Next has it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..cache.cache import attend_to, empty_kv, layer_cache
from ..context import Context
from ..linear import Linear
from .attention import self_attention
from .core import attend_here, merge_heads, split_heads
from .rope import rotate


class GatedAttention(eqx.Module):
    """Grouped-query attention with normed queries and keys; `q_proj` also makes a sigmoid gate for each of its outputs.

    `indexer`: an [`easyfn.nn.BlockIndexer`][] that chooses the keys, and keeps a cache beside the layer's.

    The rows of `q_proj` are, head by head, those of the query and then those of its gate. `rope` names the entry of
    `context.rope` to rotate with.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    q_norm: Any
    k_norm: Any
    indexer: Any
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    rope: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qk_norm: Any,
        bias: bool = False,
        rope: str = "default",
        dropout: float = 0.0,
        indexer: Any = None,
    ) -> None:
        if num_heads % num_kv_heads:
            raise ValueError(f"num_attention_heads={num_heads} is no multiple of num_key_value_heads={num_kv_heads}")
        self.q_proj = Linear(hidden_size, 2 * num_heads * head_dim, bias, axes=("heads", "embed"))
        self.k_proj = Linear(hidden_size, num_kv_heads * head_dim, bias, axes=("kv_heads", "embed"))
        self.v_proj = Linear(hidden_size, num_kv_heads * head_dim, bias, axes=("kv_heads", "embed"))
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias, axes=("embed", "heads"))
        self.q_norm = self.k_norm = qk_norm
        self.indexer = indexer
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.rope = rope
        self.dropout = dropout

    def __call__(
        self, x: Float[Array, "batch seq in_"], context: Context, cache: Any = None
    ) -> tuple[Float[Array, "batch seq out"], Any, Float[Array, "batch heads seq keys"] | None]:
        q, gate = jnp.split(self.q_proj(x).reshape(*x.shape[:2], self.num_heads, -1), 2, axis=-1)
        k, v = split_heads(self.k_proj(x), self.num_kv_heads), split_heads(self.v_proj(x), self.num_kv_heads)
        q, k = self.q_norm(jnp.swapaxes(q, 1, 2)), self.k_norm(k)
        assert context.rope is not None
        q, k = (rotate(part, context.rope[self.rope]) for part in (q, k))
        if self.indexer is None:
            scale = self.head_dim**-0.5
            out, cache, weights = self_attention(q, k, v, context, cache, scale=scale, dropout=self.dropout)
        else:
            out, cache, weights = self._chosen(x, q, k, v, context, cache)
        return self.o_proj(out * jax.nn.sigmoid(gate.reshape(out.shape))), cache, weights

    def _chosen(self, x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, context: Context, cache: Any) -> Any:
        """Attention to the keys that the indexer chooses."""
        kept, index = (None, None) if cache is None else (cache["keys"], cache["index"])
        choice, index = self.indexer(x, context, index)
        kept, keys, values, mask = attend_to(kept, k, v, context, None)
        out, weights = attend_here(
            q,
            keys,
            values,
            mask if choice is None else choice(mask),
            scale=self.head_dim**-0.5,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        return merge_heads(out), None if cache is None else {"keys": kept, "index": index}, weights


@layer_cache.register(GatedAttention)
def _(layer: GatedAttention, batch_size: int, max_length: int, dtype: Any) -> Any:
    own = empty_kv(batch_size, layer.num_kv_heads, layer.head_dim, max_length, None, dtype)
    if layer.indexer is None:
        return own
    return {"keys": own, "index": layer_cache(layer.indexer, batch_size, max_length, dtype)}
