"""Blenderbot (Roller et al. 2020, arXiv 2004.13637): a pre-norm encoder-decoder that talks, its encoder shallow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Seq2Seq
from .translation import Ids, TranslationFields, learned, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class BlenderbotConfig(TranslationFields):
    """The keys of a Blenderbot `config.json`."""

    model_type: ClassVar[str] = "blenderbot"
    vocab_size: Size = 8008
    max_position_embeddings: Size = 128
    scale_embedding: bool = False
    d_model: Size = 2560
    encoder_layers: int = 2
    encoder_ffn_dim: Size = 10240
    encoder_attention_heads: Size = 32
    decoder_layers: int = 24
    decoder_ffn_dim: Size = 10240
    decoder_attention_heads: Size = 32
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    decoder_start_token_id: int | None = 1
    forced_eos_token_id: Ids = 2
    encoder_no_repeat_ngram_size: int = 3


def blenderbot(c: Any) -> Seq2Seq:
    """Encoder and decoder, without a norm of the embeddings."""
    return translation(c, learned(c), pre_norm=True, embed_norm=False)


translation_family("Blenderbot", BlenderbotConfig, blenderbot)
