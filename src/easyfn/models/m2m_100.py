"""M2M-100 (Fan et al. 2020, arXiv 2010.11125), NLLB's architecture too: a pre-norm translator without tables of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Seq2Seq, SinusoidalPositions
from .translation import TranslationFields, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class M2M100Config(TranslationFields):
    """The keys of an M2M-100 or NLLB `config.json`."""

    model_type: ClassVar[str] = "m2m_100"
    max_position_embeddings: Size = 1024
    vocab_size: Size = 128112
    activation_function: str = "relu"
    attention_dropout: float | int = 0.1
    scale_embedding: bool = True


def m2m_100(c: Any) -> Seq2Seq:
    """Encoder and decoder, scaled embeddings without a norm, positions that begin after the padding id."""
    offset = 0 if c.pad_token_id is None else c.pad_token_id + 1
    positions = lambda side: SinusoidalPositions(c.d_model, offset=offset)
    return translation(c, positions, pre_norm=True, embed_norm=False)


translation_family(
    "M2M100", M2M100Config, m2m_100, logits_bias=False, ignore_tensors=(r"embed_positions\.weights?$", r"\.version$")
)
