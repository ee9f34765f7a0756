"""The layers of T5 (Raffel et al. 2019, arXiv 1910.10683) and its kin: unscaled attention with relative position biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import shape_of
from .activation import activation
from .attention.attention import attend, merge_heads, split_heads
from .block import feed_forward
from .cache.cache import KV, CrossKV, Ring, attend_to, empty_kv, layer_cache, order_of
from .context import Context, dropout
from .fold import fold
from .linear import Embedding, Linear
from .norm import RMSNorm
from .output import Output
from .relative import buckets
from .seq2seq import attend_to_encoder, empty_cross


def _finite(x: jax.Array) -> jax.Array:
    """In float16 T5's residuals overflow, as transformers knows: keep them finite."""
    if x.dtype != jnp.float16:
        return x
    limit = float(jnp.finfo(x.dtype).max) - 1000
    return jnp.clip(x, -limit, limit)


def position_table(config: Any) -> Embedding:
    """A bias for every bucket of distances and head, `(buckets, heads)`."""
    count, std = config.relative_attention_num_buckets, config.initializer_factor * config.d_model**-0.5
    return Embedding(count, config.num_heads, axes=(None, "heads"), std=std)


def position_bias(table: Embedding, context: Context, far: int, *, cached: bool) -> jax.Array:
    """`(1 or batch, heads, queries, keys)`, by distance in the sequence; a decoder's does not count padding.

    From the distance `far` on all share a bucket.
    """
    queries = keys = context.order if context.causal else context.slots
    if cached and not context.fresh:
        assert context.cached_segment_ids is not None
        keys = order_of(context.cached_segment_ids)
    which = buckets(
        keys[..., None, :] - queries[..., :, None],
        bidirectional=not context.causal,
        count=shape_of(table.weight)[0],
        max_distance=far,
    )
    which = which if which.ndim == 3 else which[None]  # one for all rows
    return jnp.moveaxis(table(which), -1, -3)


class T5Attention(eqx.Module):
    """Unscaled attention, of a sequence to itself or to the encoder's output; with a table of position biases of its own
    (UMT5), or with the stack's."""

    relative_attention_bias: Embedding | None
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    far: int = eqx.field(static=True)

    def __init__(self, config: Any, *, own_table: bool = False) -> None:
        c = config
        self.relative_attention_bias = position_table(c) if own_table else None
        self.far = c.relative_attention_max_distance
        inner, factor = c.num_heads * c.d_kv, c.initializer_factor
        into, out = ("heads", "embed"), ("embed", "heads")
        self.q = Linear(c.d_model, inner, axes=into, std=factor * (c.d_model * c.d_kv) ** -0.5)
        self.k = Linear(c.d_model, inner, axes=into, std=factor * c.d_model**-0.5)
        self.v = Linear(c.d_model, inner, axes=into, std=factor * c.d_model**-0.5)
        self.o = Linear(inner, c.d_model, axes=out, std=factor * inner**-0.5)
        self.heads = c.num_heads
        self.head_dim = c.d_kv
        self.dropout = c.dropout_rate

    def keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return split_heads(self.k(x), self.heads), split_heads(self.v(x), self.heads)

    def __call__(
        self, x: jax.Array, context: Context, cache: Any, *, cross: bool
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        own, bias = self.relative_attention_bias, None if cross else context.bias
        if own is not None:
            bias = position_bias(own, context, self.far, cached=cache is not None)
        if cross:
            cache, k, v, mask = attend_to_encoder(cache, context, self.keys)
        else:
            cache, k, v, mask = attend_to(cache, *self.keys(x), context, None)
        out, weights = attend(
            split_heads(self.q(x), self.heads),
            k,
            v,
            mask,
            scale=1.0,
            bias=bias,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 10 + cross),
        )
        return self.o(merge_heads(out)), cache, weights


class T5SelfAttention(eqx.Module):
    SelfAttention: T5Attention
    layer_norm: RMSNorm

    def __init__(self, config: Any, *, own_table: bool) -> None:
        self.SelfAttention = T5Attention(config, own_table=own_table)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        h, cache, weights = self.SelfAttention(self.layer_norm(x), context, cache, cross=False)
        return _finite(x + dropout(h, self.SelfAttention.dropout, context, 0)), cache, weights


class T5CrossAttention(eqx.Module):
    EncDecAttention: T5Attention
    layer_norm: RMSNorm

    def __init__(self, config: Any) -> None:
        self.EncDecAttention = T5Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        h, cache, weights = self.EncDecAttention(self.layer_norm(x), context, cache, cross=True)
        return _finite(x + dropout(h, self.EncDecAttention.dropout, context, 1)), cache, weights


class T5MLP(eqx.Module):
    """`wo(act(wi(x)))`, or `gated`, `wo(act(wi_0(x)) * wi_1(x))`."""

    wi: Linear | None
    wi_0: Linear | None
    wi_1: Linear | None
    wo: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, config: Any, act: str, *, gated: bool = False) -> None:
        c, self.act = config, act
        activation(act)
        wide = Linear(c.d_model, c.d_ff, axes=("mlp", "embed"), std=c.initializer_factor * c.d_model**-0.5)
        self.wi = None if gated else wide
        self.wi_0 = self.wi_1 = wide if gated else None
        self.wo = Linear(c.d_ff, c.d_model, axes=("embed", "mlp"), std=c.initializer_factor * c.d_ff**-0.5)
        self.dropout = c.dropout_rate

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        if self.wi is not None:
            h = activation(self.act)(self.wi(x))
        else:
            assert self.wi_0 is not None and self.wi_1 is not None
            h = activation(self.act)(self.wi_0(x)) * self.wi_1(x)
        return self.wo(dropout(h, self.dropout, context, 2))


class T5FeedForward(eqx.Module):
    """`mlp` with a norm before it and a residual."""

    DenseReluDense: Any
    layer_norm: RMSNorm
    dropout: float = eqx.field(static=True)

    def __init__(self, config: Any, mlp: Any) -> None:
        self.DenseReluDense = mlp
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = config.dropout_rate

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        h, logits = feed_forward(self.DenseReluDense, self.layer_norm(x), context)
        # wo may be kept in float32 (ef.cast), the residual stays in the model's dtype
        return _finite(x + dropout(h, self.dropout, context, 3).astype(x.dtype)), logits


class T5Block(eqx.Module):
    """Self attention, cross attention (in a decoder), feed-forward: each pre-norm with a residual."""

    layer: tuple[Any, ...]

    def __init__(self, config: Any, mlp: Any, *, decoder: bool, own_table: bool = False) -> None:
        cross = (T5CrossAttention(config),) if decoder else ()
        self.layer = (T5SelfAttention(config, own_table=own_table), *cross, T5FeedForward(config, mlp))

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        own, encoded = (None, None) if cache is None else cache
        x, own, attentions = self.layer[0](x, context, own)
        crossed = None
        if len(self.layer) == 3:
            x, encoded, crossed = self.layer[1](x, context, encoded)
        x, logits = self.layer[-1](x, context)
        extras = {"attentions": attentions, "cross_attentions": crossed, "router_logits": logits}
        return x, None if cache is None else (own, encoded), extras


@layer_cache.register(T5Block)
def _(block: T5Block, batch_size: int, max_length: int, dtype: Any) -> tuple[KV | Ring, CrossKV] | None:
    if len(block.layer) == 2:
        return None  # a block of the encoder
    heads, dim = block.layer[0].SelfAttention.heads, block.layer[0].SelfAttention.head_dim
    own = empty_kv(batch_size, heads, dim, max_length, None, dtype)
    return own, empty_cross(batch_size, heads, dim, dtype)


class T5Stack(eqx.Module):
    """The encoder or the decoder, of `blocks`. Without `own_tables` its layers share one table of position biases."""

    relative_attention_bias: Embedding | None
    block: tuple[Any, ...]
    final_layer_norm: RMSNorm
    config: Any = eqx.field(static=True)
    decoder: bool = eqx.field(static=True)

    def __init__(self, config: Any, blocks: Sequence[T5Block], *, decoder: bool, own_tables: bool = False) -> None:
        self.relative_attention_bias = None if own_tables else position_table(config)
        self.block = tuple(blocks)
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.config = config
        self.decoder = decoder

    def __call__(self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array) -> Output:
        context, table = context.replace(causal=self.decoder), self.relative_attention_bias
        if table is not None:
            far = self.config.relative_attention_max_distance
            context = context.replace(bias=position_bias(table, context, far, cached=cache is not None))
        x = dropout(inputs_embeds, self.config.dropout_rate, context, 1_000_003)
        x, cache, trace = fold(self.block, x, context, cache)
        x = dropout(self.final_layer_norm(x), self.config.dropout_rate, context, 1_000_004)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)


class T5Encoder(eqx.Module):
    """The encoder alone, as `T5EncoderModel`."""

    shared: Embedding
    encoder: T5Stack
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any, encoder: T5Stack) -> None:
        self.shared = Embedding(config.vocab_size, config.d_model, std=config.initializer_factor)
        self.encoder = encoder
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: Any = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        return self.encoder(
            context, cache, inputs_embeds=self.shared(input_ids) if inputs_embeds is None else inputs_embeds
        )
