"""ALBERT (Lan et al. 2019, arXiv 1909.11942): BERT with narrow embeddings, whose layers share their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..nn import Linear, MaskedLM, MultipleChoice, PooledClassifier, SharedLayers, TextEncoder
from .encoders import EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class AlbertConfig(EncoderFields):
    """The keys of an ALBERT `config.json`."""

    model_type: ClassVar[str] = "albert"
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout_prob: float | int | None = 0.1

    @property
    def head_dropout(self) -> float:
        said = self.classifier_dropout_prob
        return self.hidden_dropout_prob if said is None else said


def albert(config: Any, *, pooler: bool, pooled_dropout: float = 0.0) -> TextEncoder:
    """The encoder: `num_hidden_groups` groups of `inner_group_num` layers, each run several times in a row."""
    project = Linear(config.embedding_size, config.hidden_size, True, axes=(None, "embed"))
    layers = SharedLayers(config)
    return TextEncoder(config, pooler=pooler, project=project, layers=layers, pooled_dropout=pooled_dropout)


def masked_lm(c: AlbertConfig, base: TextEncoder, **more: Any) -> MaskedLM:
    return MaskedLM(base, tied=c.tie_word_embeddings, size=c.embedding_size, **more)


LAYER = "encoder.group.{g}.layer.{i}."
encoder_family(
    "Albert",
    AlbertConfig,
    albert,
    prefix="albert",
    lm_head=lambda c: masked_lm(c, albert(c, pooler=False)),
    classifier=lambda c: PooledClassifier(albert(c, pooler=True), dropout=c.head_dropout),
    choice=lambda c: MultipleChoice(albert(c, pooler=True), dropout=c.head_dropout),
    tasks={
        "pretraining": lambda c: masked_lm(
            c, albert(c, pooler=True, pooled_dropout=c.classifier_dropout_prob or 0.0), next_sentence=c.num_labels
        )
    },
    architectures={"AlbertForPreTraining": "pretraining"},
    layers=[
        *(
            (LAYER + ours + ".{rest}", "encoder.albert_layer_groups.{g}.albert_layers.{i}." + theirs + ".{rest}")
            for ours, theirs in (
                ("attention.self", "attention"),
                ("attention.output", "attention"),
                ("intermediate.dense", "ffn"),
                ("output.dense", "ffn_output"),
                ("output.LayerNorm", "full_layer_layer_norm"),
            )
        ),
        ("embeddings_project.{rest}", "encoder.embedding_hidden_mapping_in.{rest}"),
        ("pooler.dense.{rest}", "pooler.{rest}"),
    ],
    heads=[
        ("dense.{rest}", "predictions.dense.{rest}"),
        ("norm.{rest}", "predictions.LayerNorm.{rest}"),
        ("decoder.{rest}", "predictions.decoder.{rest}"),
        ("bias", "predictions.bias"),
        ("seq_relationship.{rest}", "sop_classifier.classifier.{rest}"),
    ],
)
