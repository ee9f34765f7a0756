"""Marian (Junczys-Dowmunt et al. 2018, arXiv 1804.00344): the post-norm translator of the OPUS-MT models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Seq2Seq, SinusoidalPositions
from .translation import Ids, TranslationFields, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class MarianConfig(TranslationFields):
    """The keys of a Marian `config.json`."""

    model_type: ClassVar[str] = "marian"
    max_position_embeddings: Size = 1024
    scale_embedding: bool = False
    vocab_size: Size = 58101
    decoder_vocab_size: Size | None = None
    share_encoder_decoder_embeddings: bool = True
    pad_token_id: int | None = 58100
    bos_token_id: int | None = None
    eos_token_id: Ids = 0
    decoder_start_token_id: int | None = 58100
    forced_eos_token_id: Ids = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "decoder_vocab_size": data.get("decoder_vocab_size") or data.get("vocab_size", 58101)}


def marian(c: Any) -> Seq2Seq:
    """Encoder and decoder, without a norm of the embeddings; languages may have a vocabulary each."""
    positions = lambda side: SinusoidalPositions(c.d_model, fairseq=False, size=c.max_position_embeddings)
    return translation(
        c, positions, embed_norm=False, scale_inputs=True, own_tables=not c.share_encoder_decoder_embeddings
    )


translation_family("Marian", MarianConfig, marian, lm="MTModel", ignore_tensors=(r"embed_positions\.weight$",))
