"""BART (Lewis et al. 2019, arXiv 1910.13461): an encoder-decoder with learned positions and norms after each part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Seq2Seq
from .translation import Ids, TranslationFields, learned, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class BartConfig(TranslationFields):
    """The keys of a BART `config.json`."""

    model_type: ClassVar[str] = "bart"
    max_position_embeddings: Size = 1024
    scale_embedding: bool = False
    num_labels: Size = 3
    classifier_dropout: float | int = 0.0
    forced_eos_token_id: Ids = 2


def bart(c: Any) -> Seq2Seq:
    """Encoder and decoder; the decoder reads what the encoder does where it is given nothing."""
    return translation(c, learned(c, offset=2), restores=True)


translation_family(
    "Bart",
    BartConfig,
    bart,
    classes=("sequence-classification", "question-answering"),
    ignore_tensors=(r"^(model\.)?(encoder|decoder)\.version$",),
)
