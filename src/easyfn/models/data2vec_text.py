"""data2vec for text (Baevski et al. 2022, arXiv 2202.03555): RoBERTa, trained to predict its teacher's hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .encoders import EncoderFields, encoder_family
from .roberta import roberta


@dataclass(frozen=True, kw_only=True)
class Data2VecTextConfig(EncoderFields):
    """The keys of a data2vec `config.json`."""

    model_type: ClassVar[str] = "data2vec-text"
    pad_token_id: int = 1


encoder_family("Data2VecText", Data2VecTextConfig, roberta, prefix="data2vec_text")
