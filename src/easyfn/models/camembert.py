"""CamemBERT (Martin et al. 2019, arXiv 1911.03894): RoBERTa in French."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .encoders import EncoderFields, encoder_family
from .roberta import roberta


@dataclass(frozen=True, kw_only=True)
class CamembertConfig(EncoderFields):
    """The keys of a Camembert `config.json`."""

    model_type: ClassVar[str] = "camembert"
    pad_token_id: int = 1


encoder_family("Camembert", CamembertConfig, roberta, prefix="roberta")
