"""EuroBERT (Boizard et al. 2025, arXiv 2503.05500): Llama's layers, in which every token sees every other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config.config import labels, only
from ..config.fields import LlamaFields, Size, head_dim
from ..nn import (
    Block,
    ClassificationHead,
    EncoderEmbeddings,
    EncoderLayers,
    MaskedLM,
    PooledClassifier,
    TextEncoder,
    sentence_embedding,
)
from .decoders import attention, mlp, norm
from .encoders import encoder_family


@dataclass(frozen=True, kw_only=True)
class EuroBertConfig(LlamaFields):
    """The keys of a EuroBERT `config.json`.

    `classifier_pooling`: classification reads the first token, the mean of all, or the mean of the scores of all (`late`).
    """

    model_type: ClassVar[str] = "eurobert"
    vocab_size: Size = 128256
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    max_position_embeddings: Size = 8192
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_pooling: Literal["bos", "mean", "late"] = "late"
    type_vocab_size = property(lambda c: 0)
    hidden_dropout_prob = property(lambda c: 0.0)
    head_dropout = property(lambda c: 0.0)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "is_decoder", False)
        only(data, "hidden_dropout", 0.0)  # a key of the first code, which transformers does not read
        only(data, "clf_pooling", data.get("classifier_pooling", "late"))  # another
        return labels(data)


def eurobert(c: EuroBertConfig, *, pooler: bool = False) -> TextEncoder:
    """The encoder, which never has a pooler."""
    layers = tuple(Block(attention(c), mlp(c), norm(c), norm(c)) for _ in range(c.num_hidden_layers))
    return TextEncoder(
        c,
        pooler=False,
        embeddings=EncoderEmbeddings(c, positions=False, norm=None),
        rope={"default": c.rope_parameters},
        head_dim=head_dim(c),
        layers=EncoderLayers(layers),
        norm=norm(c),
    )


def _masked_lm(c: EuroBertConfig) -> MaskedLM:
    bias = "own" if c.mlp_bias else "none"  # of the MLPs, and of the head
    return MaskedLM(eurobert(c), tied=c.tie_word_embeddings, transform=(None, None), bias=bias)


def _classifier(c: EuroBertConfig) -> PooledClassifier:
    head = ClassificationHead(c.hidden_size, c.num_labels, act="gelu")
    return PooledClassifier(
        eurobert(c), classifier=head, pooling={"bos": "cls"}.get(c.classifier_pooling, c.classifier_pooling)
    )


encoder_family(
    "EuroBert",
    EuroBertConfig,
    eurobert,
    prefix="model",
    lm_head=_masked_lm,
    classifier=_classifier,
    tasks={"sentence-embedding": lambda c: sentence_embedding(eurobert(c))},
    lacks=("question-answering", "multiple-choice"),
    layers=[
        ("embeddings.word_embeddings.{rest}", "embed_tokens.{rest}"),
        ("encoder.layer.{rest}", "layers.{rest}"),
    ],
    heads=[
        ("decoder.{rest}", "lm_head.{rest}"),
        ("bias", "lm_head.bias"),
        ("classifier.dense.{rest}", "dense.{rest}"),
        ("classifier.out_proj.{rest}", "classifier.{rest}"),
    ],
    ignore=(
        "is_decoder",
        "hidden_dropout",
        "clf_pooling",
        "mask_token_id",
        "mask_token",
        "pad_token",
        "bos_token",
        "eos_token",
    ),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)
