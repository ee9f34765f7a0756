"""T5 and T5 v1.1 (Raffel et al. 2019, arXiv 1910.10683): an encoder-decoder with relative position biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import Size
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import (
    KV,
    Context,
    CrossKV,
    Embedding,
    Linear,
    Output,
    Ring,
    RMSNorm,
    Seq2Seq,
    Seq2SeqLM,
    activation,
    attend,
    attend_to,
    attend_to_encoder,
    buckets,
    dropout,
    empty_cross,
    empty_kv,
    fold,
    layer_cache,
    merge_heads,
    order_of,
    split_heads,
)
from ..registry.family import family


@dataclass(frozen=True)
class T5Config:
    """The keys of a T5 `config.json`."""

    model_type: ClassVar[str] = "t5"
    vocab_size: Size = 32128
    d_model: Size = 512
    d_kv: Size = 64
    d_ff: Size = 2048
    num_layers: Size = 6
    num_decoder_layers: Size | None = None
    num_heads: Size = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = dict(data)
        # T5 scales the decoder's output, v1.1 does not. Files told it by tie_word_embeddings; transformers 5 writes
        # tie_word_embeddings=true for all, and scale_decoder_outputs. Whether an unscaled one is tied, its tensors say.
        tied = data.get("tie_word_embeddings") is not False
        scaled = data.get("scale_decoder_outputs")
        data["scale_decoder_outputs"] = tied if scaled is None else scaled
        data["tie_word_embeddings"] = tied and data["scale_decoder_outputs"]
        act, gated = feed_forward(data.get("feed_forward_proj") or "relu")
        for key, derived in (("dense_act_fn", act), ("is_gated_act", gated)):
            if data.get(key) not in (None, derived):
                raise ValueError(
                    f"t5: {key}={data[key]!r} contradicts feed_forward_proj={data.get('feed_forward_proj')!r}, "
                    f"which means {derived!r}"
                )
        return data

    @property
    def hidden_size(self) -> int:
        return self.d_model


def settle(config: Any, names: Collection[str]) -> Any:
    """The config that tensors of these `names` mean: a head of its own if there is one (the hub's v1.1, flan-t5), and
    else the embeddings (transformers 5 makes and saves no other)."""
    if config.scale_decoder_outputs or not names:
        return config
    return dataclasses.replace(config, tie_word_embeddings="lm_head.weight" not in names)


def feed_forward(name: str) -> tuple[str, bool]:
    """The activation that a `feed_forward_proj` names, and whether it is gated."""
    kind, _, act = name.rpartition("-")
    if kind not in ("", "gated"):
        raise ValueError(f"t5: feed_forward_proj={name!r} is neither an activation nor 'gated-' and an activation")
    return ("gelu_new" if name == "gated-gelu" else act), bool(kind)


def _finite(x: jax.Array) -> jax.Array:
    """In float16 T5's residuals overflow, as transformers knows: keep them finite."""
    if x.dtype != jnp.float16:
        return x
    limit = float(jnp.finfo(x.dtype).max) - 1000
    return jnp.clip(x, -limit, limit)


class T5Attention(eqx.Module):
    """Unscaled attention, of a sequence to itself or to the encoder's output."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, config: T5Config) -> None:
        c = config
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
            bias=None if cross else context.bias,
            runtime=context.runtime,
            weights=context.wants("attentions"),
            dropout_rate=self.dropout,
            key=None if context.key is None else jax.random.fold_in(context.key, 10 + cross),
        )
        return self.o(merge_heads(out)), cache, weights


class T5SelfAttention(eqx.Module):
    SelfAttention: T5Attention
    layer_norm: RMSNorm

    def __init__(self, config: T5Config) -> None:
        self.SelfAttention = T5Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        h, cache, weights = self.SelfAttention(self.layer_norm(x), context, cache, cross=False)
        return _finite(x + dropout(h, self.SelfAttention.dropout, context, 0)), cache, weights


class T5CrossAttention(eqx.Module):
    EncDecAttention: T5Attention
    layer_norm: RMSNorm

    def __init__(self, config: T5Config) -> None:
        self.EncDecAttention = T5Attention(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        h, cache, weights = self.EncDecAttention(self.layer_norm(x), context, cache, cross=True)
        return _finite(x + dropout(h, self.EncDecAttention.dropout, context, 1)), cache, weights


class T5MLP(eqx.Module):
    """`wo(act(wi(x)))`, or gated `wo(act(wi_0(x)) * wi_1(x))`."""

    wi: Linear | None
    wi_0: Linear | None
    wi_1: Linear | None
    wo: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, config: T5Config) -> None:
        c = config
        self.act, gated = feed_forward(c.feed_forward_proj)
        activation(self.act)
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
    DenseReluDense: T5MLP
    layer_norm: RMSNorm

    def __init__(self, config: T5Config) -> None:
        self.DenseReluDense = T5MLP(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        h = self.DenseReluDense(self.layer_norm(x), context)
        # wo may be kept in float32 (ef.cast), the residual stays in the model's dtype
        return _finite(x + dropout(h, self.DenseReluDense.dropout, context, 3).astype(x.dtype))


class T5Block(eqx.Module):
    """Self attention, cross attention (in a decoder), feed-forward: each pre-norm with a residual."""

    layer: tuple[Any, ...]

    def __init__(self, config: T5Config, *, decoder: bool) -> None:
        cross = (T5CrossAttention(config),) if decoder else ()
        self.layer = (T5SelfAttention(config), *cross, T5FeedForward(config))

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        own, encoded = (None, None) if cache is None else cache
        x, own, attentions = self.layer[0](x, context, own)
        crossed = None
        if len(self.layer) == 3:
            x, encoded, crossed = self.layer[1](x, context, encoded)
        x = self.layer[-1](x, context)
        return x, None if cache is None else (own, encoded), {"attentions": attentions, "cross_attentions": crossed}


@layer_cache.register(T5Block)
def _(block: T5Block, batch_size: int, max_length: int, dtype: Any) -> tuple[KV | Ring, CrossKV] | None:
    if len(block.layer) == 2:
        return None  # a block of the encoder
    heads, dim = block.layer[0].SelfAttention.heads, block.layer[0].SelfAttention.head_dim
    own = empty_kv(batch_size, heads, dim, max_length, None, dtype)
    return own, empty_cross(batch_size, heads, dim, dtype)


class T5Stack(eqx.Module):
    """The encoder or the decoder. The table of position biases is one per stack, `(buckets, heads)`."""

    relative_attention_bias: Embedding
    block: tuple[Any, ...]
    final_layer_norm: RMSNorm
    config: T5Config = eqx.field(static=True)
    decoder: bool = eqx.field(static=True)

    def __init__(self, config: T5Config, *, decoder: bool) -> None:
        c = config
        layers = (c.num_layers if c.num_decoder_layers is None else c.num_decoder_layers) if decoder else c.num_layers
        std = c.initializer_factor * c.d_model**-0.5
        self.relative_attention_bias = Embedding(
            c.relative_attention_num_buckets, c.num_heads, axes=(None, "heads"), std=std
        )
        self.block = tuple(T5Block(c, decoder=decoder) for _ in range(layers))
        self.final_layer_norm = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.config = c
        self.decoder = decoder

    def __call__(self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array) -> Output:
        context = context.replace(causal=self.decoder, bias=self.bias(context, cached=cache is not None))
        x = dropout(inputs_embeds, self.config.dropout_rate, context, 1_000_003)
        x, cache, trace = fold(self.block, x, context, cache)
        x = dropout(self.final_layer_norm(x), self.config.dropout_rate, context, 1_000_004)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)

    def bias(self, context: Context, *, cached: bool) -> jax.Array:
        """`(1 or batch, heads, queries, keys)`, by distance in the sequence; a decoder's does not count padding."""
        queries = keys = context.order if self.decoder else context.slots
        if cached and not context.fresh:
            assert context.cached_segment_ids is not None
            keys = order_of(context.cached_segment_ids)
        c = self.config
        which = buckets(
            keys[..., None, :] - queries[..., :, None],
            bidirectional=not self.decoder,
            count=c.relative_attention_num_buckets,
            max_distance=c.relative_attention_max_distance,
        )
        which = which if which.ndim == 3 else which[None]  # one for all rows
        return jnp.moveaxis(self.relative_attention_bias(which), -1, -3)


class T5Encoder(eqx.Module):
    """The encoder alone, as `T5EncoderModel`."""

    shared: Embedding
    encoder: T5Stack
    config: T5Config = eqx.field(static=True)

    def __init__(self, config: T5Config) -> None:
        self.shared = Embedding(config.vocab_size, config.d_model, std=config.initializer_factor)
        self.encoder = T5Stack(config, decoder=False)
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


def t5(config: T5Config) -> Seq2Seq:
    """Encoder and decoder."""
    table = Embedding(config.vocab_size, config.d_model, std=config.initializer_factor)
    return Seq2Seq(config, table, T5Stack(config, decoder=False), T5Stack(config, decoder=True))


def t5_lm(config: T5Config) -> Seq2SeqLM:
    """With the head of a language model."""
    scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
    return Seq2SeqLM(t5(config), tied=config.tie_word_embeddings, scale=scale)


def _names(model: Any) -> list[Rule]:
    prefix = "model." if isinstance(model, Seq2SeqLM) else ""
    table = "relative_attention_bias.weight"
    return [
        *(
            rename(f"{prefix}{stack}.{table}", f"{stack}.block.0.layer.0.SelfAttention.{table}")
            for stack in ("encoder", "decoder")
        ),
        rename("model.{rest}", "{rest}"),
    ]


family(
    "t5",
    config=T5Config,
    tasks={"seq2seq-lm": t5_lm, "base": t5, "encoder": T5Encoder},
    architectures={
        "T5ForConditionalGeneration": "seq2seq-lm",
        "T5WithLMHeadModel": "seq2seq-lm",
        "T5Model": "base",
        "T5EncoderModel": "encoder",
    },
    names=_names,
    # Files that were thinned out kept one of three names of one table.
    aliases={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")},
    settle=settle,
    # n_positions was never read; the others say what feed_forward_proj says, or are for heads that are not here.
    ignore=("n_positions", "dense_act_fn", "is_gated_act", "classifier_dropout"),
    # A table that transformers does not read either.
    ignore_tensors=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
    prefix="",
)
