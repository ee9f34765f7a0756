"""Granite 3 MoE (IBM 2024): Granite's multipliers, and softmax over the chosen experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..nn import Decoder
from .decoders import decoder_family, logits_scale
from .mixtures import GRANITE, GraniteMoeFields, granite_moe


@dataclass(frozen=True, kw_only=True)
class GraniteMoeConfig(GraniteMoeFields):
    """The keys of a Granite MoE `config.json`."""

    model_type: ClassVar[str] = "granitemoe"


def granitemoe(c: GraniteMoeConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention and experts, whose results are scaled before they are added."""
    return granite_moe(c)


decoder_family(
    "GraniteMoe", GraniteMoeConfig, granitemoe, classifies=False, head={"scale": logits_scale}, names=GRANITE
)
