"""XLM-RoBERTa (Conneau et al. 2019, arXiv 1911.02116): RoBERTa in a hundred languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .encoders import EncoderFields, encoder_family
from .roberta import roberta


@dataclass(frozen=True, kw_only=True)
class XLMRobertaConfig(EncoderFields):
    """The keys of a XLMRoberta `config.json`."""

    model_type: ClassVar[str] = "xlm-roberta"
    pad_token_id: int = 1


encoder_family("XLMRoberta", XLMRobertaConfig, roberta, prefix="roberta")
