"""RemBERT (Chung et al. 2020, arXiv 2010.12821): BERT with narrow embeddings for its input and wide ones for its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import LayerNorm, Linear, MaskedLM, MultipleChoice, PooledClassifier, TextEncoder
from .encoders import EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class RemBertConfig(EncoderFields):
    """The keys of a RemBERT `config.json`. Its two tables are never tied, whatever `tie_word_embeddings` says."""

    model_type: ClassVar[str] = "rembert"
    unsaid: ClassVar[tuple[str, ...]] = ("classifier_dropout",)
    vocab_size: Size = 250300
    hidden_size: Size = 1152
    num_hidden_layers: int = 32
    num_attention_heads: Size = 18
    input_embedding_size: Size = 256
    output_embedding_size: Size = 1664
    intermediate_size: Size = 4608
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout_prob: float | int = 0.1
    tie_word_embeddings: bool = False
    embedding_size = property(lambda c: c.input_embedding_size)
    head_dropout = property(lambda c: c.classifier_dropout_prob)


def rembert(c: Any, *, pooler: bool) -> TextEncoder:
    """The encoder: embeddings become as wide as the layers even where they are already."""
    project = Linear(c.input_embedding_size, c.hidden_size, True, axes=("mlp", "embed"))
    return TextEncoder(c, pooler=pooler, project=project)


def _masked_lm(c: Any) -> MaskedLM:
    size = c.output_embedding_size
    transform = Linear(c.hidden_size, size, True, axes=("mlp", "embed")), LayerNorm(size, c.layer_norm_eps)
    return MaskedLM(rembert(c, pooler=False), tied=False, size=size, transform=transform, bias="own")


encoder_family(
    "RemBert",
    RemBertConfig,
    rembert,
    prefix="rembert",
    lm_head=_masked_lm,
    classifier=lambda c: PooledClassifier(rembert(c, pooler=True), dropout=c.head_dropout),
    choice=lambda c: MultipleChoice(rembert(c, pooler=True), dropout=c.head_dropout),
    layers=[("embeddings_project.{rest}", "encoder.embedding_hidden_mapping_in.{rest}")],
    heads=[
        (f"{part}.{{rest}}", f"cls.predictions.{name}.{{rest}}")
        for part, name in (("dense", "dense"), ("norm", "LayerNorm"), ("decoder", "decoder"))
    ],
    ignore_tensors=(r"embeddings\.(position|token_type)_ids$",),
)
