"""UMT5 (Chung et al. 2023, arXiv 2304.09151): mT5 with position biases of its own in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from .text_to_text import T5Fields, gated, scaled, settle, text_to_text_family


@dataclass(frozen=True, kw_only=True)
class UMT5Config(T5Fields):
    """The keys of a UMT5 `config.json`."""

    model_type: ClassVar[str] = "umt5"
    vocab_size: Size = 250112
    d_ff: Size = 1024
    num_layers: Size = 8
    num_heads: Size = 6
    feed_forward_proj: str = "gated-gelu"
    scale_decoder_outputs: bool = True
    decoder_start_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return gated(scaled(data), "gated-gelu")


text_to_text_family(
    "UMT5", UMT5Config, scale=lambda c: c.scale_decoder_outputs, settle=settle, classifies=True, own_tables=True
)
