"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT with narrow embeddings, trained to find replaced tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..nn import ClassificationHead, MaskedLM, MultipleChoice, PooledClassifier, ReplacedTokens, TextEncoder
from .encoders import IGNORED, EncoderFields, encoder_family, encoder_only, first_token_head


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(EncoderFields):
    """The keys of an ELECTRA `config.json`."""

    model_type: ClassVar[str] = "electra"
    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    summary_activation: str | None = "gelu"
    summary_last_dropout: float | int = 0.1

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "summary_type", "first")
        only(data, "summary_use_proj", True)
        return encoder_only(data)


def electra(config: Any, *, pooler: bool) -> TextEncoder:
    """The encoder, which never has a pooler."""
    return TextEncoder(config, pooler=False)


def _choice(config: Any) -> ClassificationHead:
    act, rate = config.summary_activation or "linear", config.summary_last_dropout
    return ClassificationHead(config.hidden_size, 1, act=act, dropout=rate)


def _names(model: Any) -> list[tuple[str, str]]:
    scorers: dict[type, tuple[str, str]] = {
        MultipleChoice: ("sequence_summary.summary", "classifier"),
        ReplacedTokens: ("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
    }
    if type(model) in scorers:
        first, last = scorers[type(model)]
        return [("classifier.dense.{rest}", f"{first}.{{rest}}"), ("classifier.out_proj.{rest}", f"{last}.{{rest}}")]
    return [
        ("dense.{rest}", "generator_predictions.dense.{rest}"),
        ("norm.{rest}", "generator_predictions.LayerNorm.{rest}"),
        ("decoder.{rest}", "generator_lm_head.{rest}"),
        ("bias", "generator_lm_head.bias"),
    ]


encoder_family(
    "Electra",
    ElectraConfig,
    electra,
    prefix="electra",
    lm_head=lambda c: MaskedLM(
        electra(c, pooler=False), tied=c.tie_word_embeddings, act="gelu", size=c.embedding_size, bias="own"
    ),
    classifier=lambda c: PooledClassifier(
        electra(c, pooler=False), dropout=c.head_dropout, classifier=first_token_head(c, act="gelu")
    ),
    choice=lambda c: MultipleChoice(electra(c, pooler=False), classifier=_choice(c)),
    tasks={"pretraining": lambda c: ReplacedTokens(electra(c, pooler=False))},
    architectures={"ElectraForPreTraining": "pretraining"},
    heads=_names,
    ignore=(*IGNORED, "summary_type", "summary_use_proj"),
)
