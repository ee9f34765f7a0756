"""PEGASUS (Zhang et al. 2019, arXiv 1912.08777): a pre-norm encoder-decoder with a table of sinusoids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import FixedPositions, Seq2Seq
from .translation import Ids, TranslationFields, translation, translation_family


@dataclass(frozen=True, kw_only=True)
class PegasusConfig(TranslationFields):
    """The keys of a PEGASUS `config.json`."""

    model_type: ClassVar[str] = "pegasus"
    max_position_embeddings: Size = 1024
    scale_embedding: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: Ids = 1
    decoder_start_token_id: int | None = 0
    forced_eos_token_id: Ids = 1


def pegasus(c: Any) -> Seq2Seq:
    """Encoder and decoder, without a norm of the embeddings."""
    positions = lambda side: FixedPositions(c.max_position_embeddings, c.d_model)
    return translation(c, positions, pre_norm=True, embed_norm=False, scale_inputs=True)


translation_family("Pegasus", PegasusConfig, pegasus, optional=(r"embed_positions\.weight$",))
