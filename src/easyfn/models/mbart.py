"""mBART (Liu et al. 2020, arXiv 2001.08210): BART with norms before each part, and a language at the end of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Seq2Seq
from .translation import Ids, TranslationFields, learned, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class MBartConfig(TranslationFields):
    """The keys of an mBART `config.json`."""

    model_type: ClassVar[str] = "mbart"
    max_position_embeddings: Size = 1024
    scale_embedding: bool = False
    classifier_dropout: float | int = 0.0
    decoder_start_token_id: int | None = None
    forced_eos_token_id: Ids = 2


def mbart(c: Any) -> Seq2Seq:
    """Encoder and decoder; texts end with the token of their language, and the decoder starts from it."""
    return translation(c, learned(c, offset=2), pre_norm=True, restores=True, wraps=True)


translation_family("MBart", MBartConfig, mbart, classes=("sequence-classification", "question-answering"))
