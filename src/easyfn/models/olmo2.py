"""OLMo 2 (OLMo Team 2024, arXiv 2501.00656): norms after attention and MLP, and on queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields
from ..nn import Decoder, PostNormBlock
from .decoders import attention, decoder, decoder_family, mlp, norm, row_norms


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(LlamaFields):
    """The keys of an OLMo 2 `config.json`."""

    model_type: ClassVar[str] = "olmo2"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    pad_token_id: int | None = 1


def olmo2(c: Olmo2Config) -> Decoder:
    """The decoder: what each part returns is normed; queries and keys are normed before they are split into heads."""
    own = {"qk_norm": row_norms(c), "normed": "rows"}
    return decoder(c, lambda _: PostNormBlock(attention(c, **own), mlp(c), norm(c), norm(c)))


decoder_family("Olmo2", Olmo2Config, olmo2)
