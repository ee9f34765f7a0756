"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT of half the depth, without token types and pooler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels
from ..config.fields import CommonFields, Size, alias
from ..nn import ClassificationHead, MaskedLM, MultipleChoice, PooledClassifier, TextEncoder
from .encoders import encoder_family


@dataclass(frozen=True, kw_only=True)
class DistilBertConfig(CommonFields):
    """The keys of a DistilBERT `config.json`, which answers to BERT's as well."""

    model_type: ClassVar[str] = "distilbert"
    vocab_size: Size = 30522
    max_position_embeddings: Size = 512
    n_layers: int = 6
    n_heads: Size = 12
    dim: Size = 768
    hidden_dim: Size = 3072
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation: str = "gelu"
    qa_dropout: float | int = 0.1
    seq_classif_dropout: float | int = 0.2
    tie_word_embeddings: bool = True
    hidden_size = alias("dim")
    num_hidden_layers = alias("n_layers")
    num_attention_heads = alias("n_heads")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(data)

    intermediate_size = property(lambda c: c.hidden_dim)
    hidden_act = property(lambda c: c.activation)
    hidden_dropout_prob = property(lambda c: c.dropout)
    head_dropout = property(lambda c: c.dropout)
    attention_probs_dropout_prob = property(lambda c: c.attention_dropout)
    layer_norm_eps = property(lambda c: 1e-12)
    type_vocab_size = property(lambda c: 0)


def distilbert(config: Any, *, pooler: bool) -> TextEncoder:
    """The encoder, which never has a pooler."""
    return TextEncoder(config, pooler=False)


def _head(config: Any, num_labels: int) -> ClassificationHead:
    return ClassificationHead(config.dim, num_labels, act="relu", dropout=config.seq_classif_dropout)


LAYER = "encoder.layer.{i}."
encoder_family(
    "DistilBert",
    DistilBertConfig,
    distilbert,
    prefix="distilbert",
    lm_head=lambda c: MaskedLM(distilbert(c, pooler=False), tied=c.tie_word_embeddings, act=c.activation, bias="own"),
    classifier=lambda c: PooledClassifier(distilbert(c, pooler=False), classifier=_head(c, c.num_labels)),
    choice=lambda c: MultipleChoice(distilbert(c, pooler=False), classifier=_head(c, 1)),
    layers=[
        (LAYER + ours + ".{rest}", "transformer.layer.{i}." + theirs + ".{rest}")
        for ours, theirs in (
            ("attention.self.query", "attention.q_lin"),
            ("attention.self.key", "attention.k_lin"),
            ("attention.self.value", "attention.v_lin"),
            ("attention.output.dense", "attention.out_lin"),
            ("attention.output.LayerNorm", "sa_layer_norm"),
            ("intermediate.dense", "ffn.lin1"),
            ("output.dense", "ffn.lin2"),
            ("output.LayerNorm", "output_layer_norm"),
        )
    ],
    heads=[
        ("dense.{rest}", "vocab_transform.{rest}"),
        ("norm.{rest}", "vocab_layer_norm.{rest}"),
        ("decoder.{rest}", "vocab_projector.{rest}"),
        ("bias", "vocab_projector.bias"),
        ("classifier.dense.{rest}", "pre_classifier.{rest}"),
        ("classifier.out_proj.{rest}", "classifier.{rest}"),
    ],
    ignore=("sinusoidal_pos_embds",),  # how the table of positions started, which is in the file
)
