"""Granite 3 MoE with a shared expert (IBM 2025): as Granite MoE, and an MLP that every token goes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..nn import Decoder, FusedGatedMLP
from .decoders import decoder_family, logits_scale
from .mixtures import GRANITE, GraniteMoeFields, granite_moe


@dataclass(frozen=True, kw_only=True)
class GraniteMoeSharedConfig(GraniteMoeFields):
    """The keys of a Granite MoE `config.json`, and the width of the shared MLP: 0 for none."""

    model_type: ClassVar[str] = "granitemoeshared"
    shared_intermediate_size: int = 0


def granitemoeshared(c: GraniteMoeSharedConfig) -> Decoder:
    """The decoder: Granite's blocks of attention and of experts beside an MLP."""
    width = c.shared_intermediate_size
    return granite_moe(c, lambda: FusedGatedMLP(c.hidden_size, width, c.hidden_act) if width else None)


decoder_family(
    "GraniteMoeShared",
    GraniteMoeSharedConfig,
    granitemoeshared,
    classifies=False,
    head={"scale": logits_scale},
    names=GRANITE,
)
