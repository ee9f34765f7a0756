"""Multi-head latent attention (DeepSeek-V2, 2024, arXiv 2405.04434): keys and values of all heads from one short vector.

A token keeps its latent, `kv_lora_rank` entries, and one rotary key that all heads share. Their heads are `kv_b_proj` of the
latent; so a key's score is a product with the latent of a query that went through `kv_b_proj` the other way, and the sum of
values is `kv_b_proj` of a sum of latents. That absorbed form is what a pass over a cache takes: no head's keys are ever
made of what is cached. A prompt, where keys are few and queries many, takes the plain form.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core.halves import product
from ...core.weight import dense
from ..block import Result, feed_forward, times
from ..cache.cache import KV, attend_to, empty_slots, key_scores, layer_cache
from ..context import Context
from ..fold import hands_on
from ..linear import Linear
from ..norm import RMSNorm
from .attention import Temperature, attend
from .core import attend_here, merge_heads, split_heads
from .indexer import Chosen, Indexer, gathered, gathered_mask
from .rope import rotate


class LatentAttention(eqx.Module):
    """Self attention whose cache is latent. Fields and names of tensors are those of DeepSeek-V2 and V3.

    - `q_lora_rank`: the rank of the queries' own latent; `None` for a plain `q_proj`.
    - A head's query and key have `qk_nope_head_dim` entries without and `qk_rope_head_dim` with a rotary position, whose
      table is the entry `rope` of `context.rope`; `interleaved`: rotated are pairs of neighbours, not halves.
    - `scale` is that of the scores, by default the inverse root of a head's width. DeepSeek's yarn multiplies it by the
      square of its `mscale_all_dim` factor. `temperature`: a factor on queries that grows with the position.
    - `factors`: on the queries and on the latents of keys and values (LongCat Flash).
    - `indexer`: an [`easyfn.nn.Indexer`][] that chooses the keys (DeepSeek-V3.2), and keeps a cache beside the layer's.

    Its cache is a `KV` of one head: `k` the latents `(batch, 1, slots, kv_lora_rank)`, `v` the rotary keys `(batch, 1, slots,
    qk_rope_head_dim)`. So it is also paged, in int8, taken back and reordered as every other.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    layer = ef.nn.LatentAttention(32, 4, q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4,
                                  v_head_dim=8, rope=None)
    layer = ef.init(layer, key=jax.random.key(0))
    cache = ef.nn.layer_cache(layer, 1, 100, jnp.float32)
    assert cache.k.shape == (1, 1, 100, 16) and cache.v.shape == (1, 1, 100, 4)  # of 4 heads: 20 numbers for each token
    ```
    """

    q_proj: Linear | None
    q_a_proj: Linear | None
    q_a_layernorm: RMSNorm | None
    q_b_proj: Linear | None
    kv_a_proj_with_mqa: Linear
    kv_a_layernorm: RMSNorm
    kv_b_proj: Linear
    o_proj: Linear
    indexer: Indexer | None
    num_heads: int = eqx.field(static=True)
    kv_lora_rank: int = eqx.field(static=True)
    qk_nope_head_dim: int = eqx.field(static=True)
    qk_rope_head_dim: int = eqx.field(static=True)
    v_head_dim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    interleaved: bool = eqx.field(static=True)
    rope: str | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    temperature: Temperature | None = eqx.field(static=True)
    factors: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        bias: bool = False,
        eps: float = 1e-6,
        scale: float | None = None,
        interleaved: bool = True,
        rope: str | None = "default",
        dropout: float = 0.0,
        temperature: Temperature | None = None,
        indexer: Indexer | None = None,
        factors: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        if indexer is not None and q_lora_rank is None:
            raise ValueError("LatentAttention: an indexer reads the latent of the queries, and q_lora_rank is None")
        width = qk_nope_head_dim + qk_rope_head_dim
        wide = lambda into: Linear(into, num_heads * width, axes=("heads", None if into != hidden_size else "embed"))
        low = q_lora_rank
        self.q_proj = wide(hidden_size) if low is None else None
        self.q_a_proj = None if low is None else Linear(hidden_size, low, bias, axes=(None, "embed"))
        self.q_a_layernorm = None if low is None else RMSNorm(low, eps)
        self.q_b_proj = None if low is None else wide(low)
        self.kv_a_proj_with_mqa = Linear(hidden_size, kv_lora_rank + qk_rope_head_dim, bias, axes=(None, "embed"))
        self.kv_a_layernorm = RMSNorm(kv_lora_rank, eps)
        self.kv_b_proj = Linear(kv_lora_rank, num_heads * (qk_nope_head_dim + v_head_dim), axes=("heads", None))
        self.o_proj = Linear(num_heads * v_head_dim, hidden_size, bias, axes=("embed", "heads"))
        self.indexer = indexer
        self.num_heads = num_heads
        self.kv_lora_rank = kv_lora_rank
        self.qk_nope_head_dim = qk_nope_head_dim
        self.qk_rope_head_dim = qk_rope_head_dim
        self.v_head_dim = v_head_dim
        self.scale = width**-0.5 if scale is None else scale
        self.interleaved = interleaved
        self.rope = rope
        self.dropout = dropout
        self.temperature = temperature
        self.factors = factors

    def __call__(
        self, x: Float[Array, "batch seq in_"], context: Context, cache: Any = None
    ) -> tuple[Float[Array, "batch seq out"], Any, Float[Array, "batch heads seq keys"] | None]:
        return self.choosing(x, context, cache)[:3]

    def choosing(
        self, x: jax.Array, context: Context, cache: Any = None, chosen: jax.Array | None = None
    ) -> tuple[jax.Array, Any, jax.Array | None, jax.Array | None]:
        """As a call, to the keys `chosen` `(batch, seq, count)` of an earlier layer where there is no indexer. Also returns
        the choice: `None` is all keys."""
        queries, low = self._queries(x)
        q = split_heads(queries, self.num_heads)
        if self.temperature is not None:  # before the rotation, which keeps lengths
            q = q * self.temperature(context.position_ids)[:, None, :, None].astype(q.dtype)
        q = times(q, self.factors[0])
        q_nope, q_rope = jnp.split(q, [self.qk_nope_head_dim], axis=-1)
        latent, k_rope = jnp.split(self.kv_a_proj_with_mqa(x)[:, None], [self.kv_lora_rank], axis=-1)
        latent = times(self.kv_a_layernorm(latent), self.factors[1])
        q_rope, k_rope = self._rotated(q_rope, context), self._rotated(k_rope, context)
        plain = cache is None or context.fresh
        kept = cache
        if self.indexer is not None:
            kept, index = (None, None) if cache is None else (cache["latent"], cache["index"])
            chosen, index = self.indexer(x, low, context, index)
        kept, latents, rotary, mask = attend_to(kept, latent, k_rope, context, None)
        cache = kept if cache is None or self.indexer is None else {"latent": kept, "index": index}
        options: dict[str, Any] = dict(
            scale=self.scale,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 0),
        )
        few = chosen is not None and not plain and x.shape[1] == 1 and not context.wants("attentions")
        if few:  # one query reads its keys only
            assert chosen is not None
            latents, rotary = gathered(latents, chosen[:, 0]), gathered(rotary, chosen[:, 0])
            mask = gathered_mask(mask, chosen[:, 0])
        # A choice has no form that passes from device to device: on a mesh XLA gathers the keys.
        run = attend if chosen is None else attend_here
        seen: Any = mask if chosen is None or few else Chosen(mask, chosen)
        if plain:
            k_nope, v = jnp.split(
                split_heads(self.kv_b_proj(latent[:, 0]), self.num_heads), [self.qk_nope_head_dim], -1
            )
            k_rope = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], self.qk_rope_head_dim))
            q, k = jnp.concatenate([q_nope, q_rope], axis=-1), jnp.concatenate([k_nope, k_rope], axis=-1)
            out, weights = run(q, k, v, seen, **options)
        else:
            to_key, to_value = self._heads(x.dtype)
            # All heads are one group of the only key head, so its rows are heads and then queries.
            rows = q_rope.reshape(q_rope.shape[0], 1, -1, self.qk_rope_head_dim)
            bias = key_scores(rotary, rows).reshape(*q_rope.shape[:3], -1) * self.scale
            out, weights = run(_by_head(q_nope, to_key), latents, latents, seen, bias=bias, **options)
            out = _by_head(out, to_value)
        return self.o_proj(merge_heads(out)), cache, weights, chosen

    def _queries(self, x: jax.Array) -> tuple[jax.Array, Any]:
        """The queries of all heads, and the latent they are made of."""
        if self.q_proj is not None:
            return self.q_proj(x), None
        assert self.q_a_proj is not None and self.q_a_layernorm is not None and self.q_b_proj is not None
        low = self.q_a_layernorm(self.q_a_proj(x))
        return self.q_b_proj(low), low

    def _rotated(self, x: jax.Array, context: Context) -> jax.Array:
        if self.rope is None:
            return x
        assert context.rope is not None
        if self.interleaved:  # a product of two does not depend on the order of their entries
            x = jnp.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
        return rotate(x, context.rope[self.rope])

    def _heads(self, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """`kv_b_proj` by heads: from queries to latents `(heads, nope, rank)`, from latents to values `(heads, rank, v)`."""
        w = dense(self.kv_b_proj.weight).astype(dtype)
        w = w.reshape(self.num_heads, self.qk_nope_head_dim + self.v_head_dim, self.kv_lora_rank)
        return w[:, : self.qk_nope_head_dim], jnp.swapaxes(w[:, self.qk_nope_head_dim :], 1, 2)


class ChoosingBlock(eqx.Module):
    """A pre-norm block ([`easyfn.nn.Block`][]) of latent attention, whose choice of keys the blocks after it that have no
    indexer share (GLM-5)."""

    self_attn: LatentAttention
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        shared = None if self.self_attn.indexer is not None else (context.handed_on or {}).get("chosen")
        h, cache, attentions, chosen = self.self_attn.choosing(self.input_layernorm(x), context, cache, shared)
        x = x + h
        h, router_logits = feed_forward(self.mlp, self.post_attention_layernorm(x), context)
        given = None if chosen is None else {"chosen": chosen}
        return x + h, cache, {"attentions": attentions, "router_logits": router_logits, "handed_on": given}


@hands_on.register(ChoosingBlock)
def _(block: ChoosingBlock) -> bool:
    return True


def _by_head(x: jax.Array, w: jax.Array) -> jax.Array:
    """`(batch, heads, seq, n)` with each head's matrix `(heads, n, m)`, float32 accumulation."""
    out = product(x, w, (((3,), (1,)), ((1,), (0,))))
    return jnp.swapaxes(out, 0, 1).astype(x.dtype)


@layer_cache.register(LatentAttention)
def _(layer: LatentAttention, batch_size: int, max_length: int, dtype: Any) -> KV | dict[str, KV]:
    room = lambda width: empty_slots((batch_size, 1, max_length, width), dtype)
    own = KV(room(layer.kv_lora_rank), room(layer.qk_rope_head_dim))
    if layer.indexer is None:
        return own
    return {"latent": own, "index": layer_cache(layer.indexer, batch_size, max_length, dtype)}
