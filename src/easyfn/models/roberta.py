"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT whose positions begin after the padding's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..nn import TextEncoder
from .encoders import EncoderFields, encoder_family


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(EncoderFields):
    """The keys of a RoBERTa `config.json`."""

    model_type: ClassVar[str] = "roberta"
    vocab_size: int = 50265
    pad_token_id: int = 1


def roberta(config: Any, *, pooler: bool) -> TextEncoder:
    """The encoder: the table of positions has rows for the padding, which come first."""
    return TextEncoder(config, pooler=pooler, padding=config.pad_token_id)


encoder_family("Roberta", RobertaConfig, roberta, prefix="roberta")
