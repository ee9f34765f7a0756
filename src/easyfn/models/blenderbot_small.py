"""Blenderbot's small model (Roller et al. 2020, arXiv 2004.13637), which is post-norm and norms its embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Seq2Seq
from .translation import Ids, TranslationFields, learned, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class BlenderbotSmallConfig(TranslationFields):
    """The keys of a small Blenderbot's `config.json`."""

    model_type: ClassVar[str] = "blenderbot-small"
    max_position_embeddings: Size = 512
    scale_embedding: bool = False
    d_model: Size = 512
    encoder_layers: int = 8
    encoder_ffn_dim: Size = 2048
    decoder_layers: int = 8
    decoder_ffn_dim: Size = 2048
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    decoder_start_token_id: int | None = 1
    forced_eos_token_id: Ids = 2


def blenderbot_small(c: Any) -> Seq2Seq:
    """Encoder and decoder; the decoder norms its embeddings before they get their positions."""
    return translation(c, learned(c), embed_norm="before")


translation_family("BlenderbotSmall", BlenderbotSmallConfig, blenderbot_small)
