"""T5 and T5 v1.1 (Raffel et al. 2019, arXiv 1910.10683): an encoder-decoder with relative position biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .text_to_text import T5Fields, gated, scaled, settle, text_to_text_family


@dataclass(frozen=True, kw_only=True)
class T5Config(T5Fields):
    """The keys of a T5 `config.json`."""

    model_type: ClassVar[str] = "t5"
    feed_forward_proj: str = "relu"
    scale_decoder_outputs: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return gated(scaled(data), "relu")


text_to_text_family(
    "T5",
    T5Config,
    scale=lambda c: c.scale_decoder_outputs,
    settle=settle,
    classifies=True,
    architectures=("T5WithLMHeadModel",),
)
