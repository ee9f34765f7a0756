"""OLMo (Groeneveld et al. 2024, arXiv 2402.00838): Llama with LayerNorm that has no parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields
from ..nn import Block, Decoder, LayerNorm
from .decoders import attention, decoder, decoder_family, mlp


@dataclass(frozen=True, kw_only=True)
class OlmoConfig(RotaryFields):
    """The keys of an OLMo `config.json`."""

    model_type: ClassVar[str] = "olmo"
    hidden_act: str = "silu"
    attention_bias: bool = False
    clip_qkv: float | int | None = None
    pad_token_id: int | None = 1


def olmo(c: OlmoConfig) -> Decoder:
    """The decoder: pre-norm layers; queries, keys and values are clipped where `clip_qkv` says so."""
    norm = lambda: LayerNorm(c.hidden_size, affine=False)
    return decoder(c, lambda _: Block(attention(c, clip=c.clip_qkv), mlp(c), norm(), norm()), norm())


decoder_family("Olmo", OlmoConfig, olmo)
