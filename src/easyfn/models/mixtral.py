"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with eight experts in the place of each MLP, two per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import MIXTRAL, MixtralFields, mixtral_experts


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MixtralFields):
    """The keys of a Mixtral `config.json`."""

    model_type: ClassVar[str] = "mixtral"


def mixtral(c: MixtralConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention, a mixture of gated MLPs, all pre-norm."""
    return decoder(c, lambda _: Block(attention(c, window=c.sliding_window), mixtral_experts(c), norm(c), norm(c)))


decoder_family("Mixtral", MixtralConfig, mixtral, tags="score", answers="model", names=MIXTRAL)
