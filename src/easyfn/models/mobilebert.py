"""MobileBERT (Sun et al. 2020, arXiv 2004.02984): thin layers between bottlenecks, and tokens that see both neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import Size
from ..core.stack import one_by_one
from ..core.weight import Slot, Weight, dense, slots
from ..names.rules import transposed
from ..nn import (
    Context,
    EncoderLayers,
    LayerNorm,
    Linear,
    MaskedLM,
    MultipleChoice,
    NextSentence,
    PooledClassifier,
    TextEncoder,
    along_last,
    declare,
    dropout,
)
from ..nn.attention.attention import attend_within
from ..nn.attention.core import split_heads
from ..nn.context import encoder_mask
from ..nn.encoder import AddNorm, Dense, chosen_rows, learned_positions
from ..nn.linear import Embedding, pad_token
from .encoders import PREDICTIONS, EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class MobileBertConfig(EncoderFields):
    """The keys of a MobileBERT `config.json`."""

    model_type: ClassVar[str] = "mobilebert"
    ignored: ClassVar = ("true_hidden_size",)  # what the others say
    hidden_size: Size = 512
    num_hidden_layers: int = 24
    num_attention_heads: Size = 4
    intermediate_size: Size = 512
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.0
    embedding_size: Size = 128
    trigram_input: bool = True
    use_bottleneck: bool = True
    intra_bottleneck_size: Size = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: Size = 4
    normalization_type: Literal["no_norm", "layer_norm"] = "no_norm"
    classifier_activation: bool = True
    width = property(lambda c: c.intra_bottleneck_size if c.use_bottleneck else c.hidden_size)  # of the layers


class NoNorm(eqx.Module):
    """`x * weight + bias`, which the paper has in the place of a norm."""

    weight: Weight
    bias: Weight

    def __init__(self, size: int) -> None:
        self.weight, self.bias = declare(size), declare(size)

    def __call__(self, x: jax.Array) -> jax.Array:
        weight, bias = (along_last(dense(w).astype(x.dtype), x) for w in (self.weight, self.bias))
        return x * weight + bias


@slots.register(NoNorm)
def _(norm: NoNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "ones"), "bias": Slot("bias", ("norm",), "zeros")}


def norm_of(c: MobileBertConfig, size: int, eps: float) -> NoNorm | LayerNorm:
    return NoNorm(size) if c.normalization_type == "no_norm" else LayerNorm(size, eps)


class MobileBertEmbeddings(eqx.Module):
    """`norm(transformed(word before, word, word behind) + token type + position)`.

    At the ends of a text the neighbour is zeros. Padding is a neighbour as any word is, as in transformers.
    """

    word_embeddings: Embedding
    position_embeddings: Embedding
    token_type_embeddings: Embedding
    embedding_transformation: Linear  # files have it where nothing is transformed, too
    LayerNorm: Any
    dropout: float = eqx.field(static=True)
    trigram: bool = eqx.field(static=True)

    def __init__(self, c: MobileBertConfig) -> None:
        table = lambda rows: Embedding(rows, c.hidden_size, axes=(None, "embed"))
        self.word_embeddings = Embedding(c.vocab_size, c.embedding_size, padding=pad_token(c))
        self.position_embeddings = table(c.max_position_embeddings)
        self.token_type_embeddings = table(c.type_vocab_size)
        wide = c.embedding_size * (3 if c.trigram_input else 1)
        self.embedding_transformation = Linear(wide, c.hidden_size, True, axes=("mlp", "embed"))
        self.LayerNorm = norm_of(c, c.hidden_size, 1e-5)
        self.dropout, self.trigram = c.hidden_dropout_prob, c.trigram_input

    def __call__(
        self, context: Context, input_ids: Any, inputs_embeds: jax.Array | None, token_type_ids: Any
    ) -> jax.Array:
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.trigram:
            if context.segment_ids is not None:  # padding is read and does not learn, as torch's `padding_idx`
                x = jnp.where(context.segment_ids[..., None] == 0, jax.lax.stop_gradient(x), x)
            x = jnp.concatenate([_neighbour(x, 1, context), x, _neighbour(x, -1, context)], axis=-1)
        if self.trigram or x.shape[-1] != self.position_embeddings.weight.shape[1]:
            x = self.embedding_transformation(x)
        types = np.zeros(x.shape[:2], np.int32) if token_type_ids is None else token_type_ids
        x = x + learned_positions(self.position_embeddings, context.position_ids)
        x = x + chosen_rows(self.token_type_embeddings, types, "token_type_ids")
        return dropout(self.LayerNorm(x), self.dropout, context, 1_000_003)


def _neighbour(x: jax.Array, step: int, context: Context) -> jax.Array:
    """Of each token of `x` the one `step` behind it: zeros where there is none, or one of another document."""
    there = lambda a: jnp.roll(a, -step, axis=1)
    inside = np.arange(x.shape[1]) + step
    keep = jnp.asarray((inside >= 0) & (inside < x.shape[1]))[None]
    seen = context.segment_ids
    if seen is not None:
        keep = keep & ((seen == there(seen)) | (seen == 0) | (there(seen) == 0))
    return jnp.where(keep[..., None], there(x), jnp.zeros((), x.dtype))


class ThinAttention(eqx.Module):
    """Attention whose queries and keys, and whose values, are made of hidden states of their own."""

    query: Linear
    key: Linear
    value: Linear
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: MobileBertConfig) -> None:
        if c.width % c.num_attention_heads:
            raise ValueError(f"mobilebert: layers of {c.width} are no multiple of {c.num_attention_heads} heads")
        linear = lambda size: Linear(size, c.width, True, axes=("heads", "embed"))
        self.query, self.key = linear(c.width), linear(c.width)
        self.value = linear(c.width if c.use_bottleneck_attention else c.hidden_size)
        self.heads, self.dropout = c.num_attention_heads, c.attention_probs_dropout_prob

    def __call__(self, asks: jax.Array, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        q, k, v = self.query(asks), self.key(asks), self.value(x)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        mask, scale = encoder_mask(context), q.shape[-1] ** -0.5
        return attend_within(context, q, k, v, mask, dropout=self.dropout, scale=scale, bias=context.bias)


class ThinNorm(eqx.Module):
    """`norm(dense(x))`: what makes hidden states thin."""

    dense: Linear
    LayerNorm: Any

    def __init__(self, c: MobileBertConfig) -> None:
        self.dense = Linear(c.hidden_size, c.intra_bottleneck_size, True, axes=("mlp", "embed"))
        self.LayerNorm = norm_of(c, c.intra_bottleneck_size, c.layer_norm_eps)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dense(x))


def add_norm(c: MobileBertConfig, size_in: int, size: int, rate: float, eps: float) -> AddNorm:
    return AddNorm(size_in, size, eps, rate, axes=("embed", "mlp"), norm=norm_of(c, size, eps))


class FeedForward(eqx.Module):
    """A feed-forward layer before the last one."""

    intermediate: Dense
    output: AddNorm

    def __init__(self, c: MobileBertConfig) -> None:
        self.intermediate = Dense(c.width, c.intermediate_size, c.hidden_act, axes=("mlp", "embed"))
        self.output = add_norm(c, c.intermediate_size, c.width, 0.0, c.layer_norm_eps)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return self.output(self.intermediate(x), x, context, 2)


class MobileBertLayer(eqx.Module):
    """Thin attention, then several thin feed-forward layers; what comes out is made wide and added to what came in."""

    narrow: ThinNorm | None
    narrow_attention: ThinNorm | None
    attention: ThinAttention
    attention_output: AddNorm
    ffn: tuple[FeedForward, ...]
    intermediate: Dense
    output: AddNorm
    wide: AddNorm | None
    shared: bool = eqx.field(static=True)

    def __init__(self, c: MobileBertConfig) -> None:
        thin, own = c.use_bottleneck, not c.use_bottleneck_attention
        if thin and own and not c.key_query_shared_bottleneck and c.hidden_size != c.width:
            raise ValueError(
                "mobilebert: without use_bottleneck_attention and key_query_shared_bottleneck, queries and keys are made of "
                f"hidden states of {c.hidden_size} by layers of {c.width}: intra_bottleneck_size must be hidden_size"
            )
        rate = 0.0 if thin else c.hidden_dropout_prob
        self.narrow = ThinNorm(c) if thin else None
        self.narrow_attention = ThinNorm(c) if thin and c.key_query_shared_bottleneck else None
        self.attention = ThinAttention(c)
        self.attention_output = add_norm(c, c.width, c.width, rate, c.layer_norm_eps)
        self.ffn = tuple(FeedForward(c) for _ in range(c.num_feedforward_networks - 1))
        self.intermediate = Dense(c.width, c.intermediate_size, c.hidden_act, axes=("mlp", "embed"))
        self.output = add_norm(c, c.intermediate_size, c.width, rate, 1e-5)
        self.wide = add_norm(c, c.width, c.hidden_size, c.hidden_dropout_prob, c.layer_norm_eps) if thin else None
        self.shared = own

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        thin = x if self.narrow is None else self.narrow(x)
        asks = values = x if self.shared else thin
        if self.shared and self.narrow_attention is not None:
            asks = self.narrow_attention(x)
        h, attentions = self.attention(asks, values, context)
        h = self.attention_output(h, thin, context, 1)
        for part in one_by_one(self.ffn):
            h = part(h, context)
        h = self.output(self.intermediate(h), h, context, 2)
        return h if self.wide is None else self.wide(h, x, context, 3), cache, {"attentions": attentions}


class AsItIs(eqx.Module):
    """A pooler that leaves the first token as it is."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def mobilebert(c: MobileBertConfig, *, pooler: bool) -> TextEncoder:
    layers = EncoderLayers(tuple(MobileBertLayer(c) for _ in range(c.num_hidden_layers)))
    pooled = pooler if c.classifier_activation or not pooler else AsItIs()
    return TextEncoder(c, pooler=pooled, embeddings=MobileBertEmbeddings(c), layers=layers)


def masked_lm(c: MobileBertConfig, **more: Any) -> MaskedLM:
    """The head reads of a hidden state as much as an embedding is wide by the embeddings, the rest by a table of its own."""
    if c.hidden_size <= c.embedding_size:
        raise ValueError(
            f"mobilebert: the masked language model reads hidden states wider than embeddings, and hidden_size={c.hidden_size} "
            f"is no more than embedding_size={c.embedding_size}"
        )
    base = mobilebert(c, pooler=bool(more))
    transform = (
        Linear(c.hidden_size, c.hidden_size, True, axes=("mlp", "embed")),
        LayerNorm(c.hidden_size, c.layer_norm_eps),
    )
    return MaskedLM(base, tied=c.tie_word_embeddings, size=c.embedding_size, transform=transform, **more)


LAYER = "encoder.layer.{i}."
encoder_family(
    "MobileBert",
    MobileBertConfig,
    mobilebert,
    prefix="mobilebert",
    lm_head=masked_lm,
    classifier=lambda c: PooledClassifier(mobilebert(c, pooler=True), dropout=c.head_dropout),
    choice=lambda c: MultipleChoice(mobilebert(c, pooler=True), dropout=c.head_dropout),
    tasks={
        "pretraining": lambda c: masked_lm(c, next_sentence=True),
        "next-sentence": lambda c: NextSentence(mobilebert(c, pooler=True)),
    },
    architectures={
        "MobileBertForPreTraining": "pretraining",
        "MobileBertForNextSentencePrediction": "next-sentence",
    },
    layers=[
        (f"{LAYER}{ours}.{{rest}}", f"{LAYER}{theirs}.{{rest}}")
        for ours, theirs in (
            ("narrow", "bottleneck.input"),
            ("narrow_attention", "bottleneck.attention"),
            ("attention", "attention.self"),
            ("attention_output", "attention.output"),
            ("wide", "output.bottleneck"),
        )
    ],
    heads=[
        transposed("beyond.weight", "cls.predictions.dense.weight"),
        *PREDICTIONS,
        ("seq_relationship.{rest}", "cls.seq_relationship.{rest}"),
    ],
)
