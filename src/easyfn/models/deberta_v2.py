"""DeBERTa-v2 and -v3 (He et al. 2021, arXiv 2006.03654 and 2111.09543): BERT with disentangled attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.check import Integer
from ..config.config import labels, only
from ..config.fields import Size
from ..core.weight import dense
from ..nn import (
    ClassificationHead,
    Context,
    Conv,
    DisentangledAttention,
    Embedding,
    EncoderEmbeddings,
    EncoderLayer,
    LayerNorm,
    Linear,
    MaskedLM,
    MultipleChoice,
    PooledClassifier,
    TextEncoder,
    activation,
    dropout,
    fold,
    within_documents,
)
from .encoders import EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class DebertaV2Config(EncoderFields):
    """The keys of a DeBERTa-v2 `config.json`.

    Relative positions reach `max_relative_positions` tokens (`max_position_embeddings` if it is below 1), in
    `position_buckets` where those are above 0. `conv_kernel_size` above 0: a convolution beside the first layer. With
    `legacy` false the masked language model has the head of the original code, always tied.
    """

    model_type: ClassVar[str] = "deberta-v2"
    soft_labels: ClassVar[bool] = True  # labels (batch, num_labels) are weights of classes
    unsaid: ClassVar[tuple[str, ...]] = (
        "embedding_size",
        "position_buckets",
        "share_att_key",
        "norm_rel_ebd",
        "conv_kernel_size",
        "conv_groups",
        "conv_act",
        "cls_dropout",
        "classifier_dropout",
    )
    vocab_size: Size = 128100
    hidden_size: Size = 1536
    embedding_size: Size | None = None
    num_hidden_layers: int = 24
    num_attention_heads: Size = 24
    intermediate_size: Size = 6144
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: Integer = -1
    position_buckets: Integer = -1
    position_biased_input: bool = True
    pos_att_type: tuple[str, ...] | None = None
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: Size = 1
    conv_act: str = "tanh"
    pooler_dropout: float | int = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | int | None = None
    legacy: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        size = data.get("hidden_size", DebertaV2Config.hidden_size)
        heads = data.get("num_attention_heads") or DebertaV2Config.num_attention_heads
        only(data, "is_decoder", False)
        only(data, "pooler_hidden_size", size)  # transformers builds others, and cannot run them
        only(data, "attention_head_size", size / heads)
        said = data.get("pos_att_type")
        if isinstance(said, str):
            data = {**data, "pos_att_type": [part.strip() for part in said.lower().split("|")]}
        return labels(data)

    # Token classification is dropped out as everything is.
    head_dropout = property(lambda c: c.hidden_dropout_prob)
    reach = property(lambda c: c.max_position_embeddings if c.max_relative_positions < 1 else c.max_relative_positions)
    span = property(lambda c: c.position_buckets if c.position_buckets > 0 else c.reach)


class ConvolvedLayer(eqx.Module):
    """A layer with a convolution beside it: `norm(layer(x) + act(conv(x)))`."""

    layer: EncoderLayer
    conv: Conv
    LayerNorm: LayerNorm
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, config: DebertaV2Config, layer: EncoderLayer) -> None:
        c = config
        if c.conv_kernel_size % 2 == 0 or c.hidden_size % c.conv_groups:
            raise ValueError(
                f"deberta-v2: conv_kernel_size={c.conv_kernel_size} must be odd, and hidden_size={c.hidden_size} a multiple "
                f"of conv_groups={c.conv_groups}"
            )
        activation(c.conv_act)
        self.layer = layer
        self.conv = Conv(c.hidden_size, c.hidden_size, (c.conv_kernel_size,), groups=c.conv_groups)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.act = c.conv_act
        self.dropout = c.hidden_dropout_prob

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, cache, extras = self.layer(x, context, cache)
        y = dropout(within_documents(self.conv, x, context.segment_ids), self.dropout, context, 7)
        return self.LayerNorm(h + activation(self.act)(y)), cache, extras


class DebertaLayers(eqx.Module):
    """The layers, and the embeddings of relative positions that all of them share, normed where there is a `LayerNorm`."""

    layer: tuple[Any, ...]
    rel_embeddings: Embedding | None
    LayerNorm: LayerNorm | None

    def __init__(self, config: DebertaV2Config) -> None:
        c = config

        def layer(i: int) -> Any:
            attention = DisentangledAttention(
                c.hidden_size,
                c.num_attention_heads,
                terms=c.pos_att_type or (),
                relative=c.relative_attention,
                shared=c.share_att_key,
                buckets=c.position_buckets,
                max_distance=c.reach,
                dropout=c.attention_probs_dropout_prob,
                relative_dropout=c.hidden_dropout_prob,
            )
            made = EncoderLayer(c, attention=attention)
            return ConvolvedLayer(c, made) if i == 0 and c.conv_kernel_size else made

        self.layer = tuple(layer(i) for i in range(c.num_hidden_layers))
        rows = Embedding(2 * c.span, c.hidden_size, axes=(None, "embed"))
        self.rel_embeddings = rows if c.relative_attention else None
        normed = "layer_norm" in [part.strip() for part in c.norm_rel_ebd.lower().split("|")]
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps) if normed else None

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
        if self.rel_embeddings is not None:
            table = dense(self.rel_embeddings.weight).astype(x.dtype)
            context = context.replace(relative=table if self.LayerNorm is None else self.LayerNorm(table))
        x, _, trace = fold(self.layer, x, context)
        return x, trace


def deberta(c: DebertaV2Config, *, pooler: bool = False) -> TextEncoder:
    """The encoder, which never has a pooler: the heads that read the first token bring theirs."""
    narrow = c.embedding_size or c.hidden_size
    project = None if narrow == c.hidden_size else Linear(narrow, c.hidden_size, axes=("embed", None))
    embeddings = EncoderEmbeddings(c, positions=c.position_biased_input, project=project)
    return TextEncoder(c, pooler=False, embeddings=embeddings, layers=DebertaLayers(c))


def _masked_lm(c: DebertaV2Config) -> MaskedLM:
    if c.legacy:
        return MaskedLM(deberta(c), tied=c.tie_word_embeddings, size=c.embedding_size)
    if c.embedding_size not in (None, c.hidden_size):
        raise ValueError(
            f"deberta-v2: legacy=False reads scores off word embeddings, which are embedding_size={c.embedding_size} wide "
            f"and the hidden states hidden_size={c.hidden_size}"
        )
    return MaskedLM(deberta(c))


def _head(c: DebertaV2Config, count: int) -> ClassificationHead:
    rate = c.hidden_dropout_prob if c.cls_dropout is None else c.cls_dropout
    return ClassificationHead(c.hidden_size, count, act=c.pooler_hidden_act, dropout=rate)


def _names(model: Any) -> list[tuple[str, str]]:
    legacy = model.config.legacy
    transform = "cls.predictions.transform" if legacy else "lm_predictions.lm_head"
    return [
        ("dense.{rest}", f"{transform}.dense.{{rest}}"),
        ("norm.{rest}", f"{transform}.LayerNorm.{{rest}}"),
        ("decoder.{rest}", "cls.predictions.decoder.{rest}"),
        ("bias", "cls.predictions.bias" if legacy else "lm_predictions.lm_head.bias"),
        ("classifier.dense.{rest}", "pooler.dense.{rest}"),
        ("classifier.out_proj.{rest}", "classifier.{rest}"),
    ]


encoder_family(
    "DebertaV2",
    DebertaV2Config,
    deberta,
    prefix="deberta",
    lm_head=_masked_lm,
    classifier=lambda c: PooledClassifier(deberta(c), dropout=c.pooler_dropout, classifier=_head(c, c.num_labels)),
    choice=lambda c: MultipleChoice(deberta(c), dropout=c.pooler_dropout, classifier=_head(c, 1)),
    layers=[
        ("encoder.layer.0.conv.{rest}", "encoder.conv.conv.{rest}"),
        ("encoder.layer.0.LayerNorm.{rest}", "encoder.conv.LayerNorm.{rest}"),
        ("encoder.layer.0.layer.{rest}", "encoder.layer.0.{rest}"),
    ],
    heads=_names,
    ignore=("is_decoder", "pooler_hidden_size", "attention_head_size"),
    # Buffers, the twin of the tied bias, and what transformers leaves in the file as well.
    ignore_tensors=(
        r"embeddings\.position_ids$",
        r"decoder\.bias$",
        r"embeddings\.position_embeddings",
        r"mask_predictions\.",
    ),
)
