"""mT5 (Xue et al. 2020, arXiv 2010.11934): T5 v1.1 in many languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from .text_to_text import T5Fields, gated, settle, text_to_text_family


@dataclass(frozen=True, kw_only=True)
class MT5Config(T5Fields):
    """The keys of an mT5 `config.json`."""

    model_type: ClassVar[str] = "mt5"
    vocab_size: Size = 250112
    d_ff: Size = 1024
    num_layers: Size = 8
    num_heads: Size = 6
    feed_forward_proj: str = "gated-gelu"
    decoder_start_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return gated(data, "gated-gelu")


text_to_text_family("MT5", MT5Config, scale=lambda c: False, settle=settle, classifies=True)
