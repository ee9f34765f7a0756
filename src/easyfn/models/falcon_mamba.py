"""Falcon-Mamba (TII 2024, arXiv 2410.05355): Mamba with norms without weights on time steps, B and C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..names.rules import rename
from ..nn import CausalLM, MixerModel, RMSNorm
from ..registry.family import family
from .mamba import IGNORED, MambaConfig, mamba


@dataclass(frozen=True)
class FalconMambaConfig(MambaConfig):
    """The keys of a Falcon-Mamba `config.json`: Mamba's, and the epsilon of its norms."""

    model_type: ClassVar[str] = "falcon_mamba"
    mixer_rms_eps: float = 1e-6


def falcon_mamba(config: FalconMambaConfig) -> MixerModel:
    """The model: a selective scan in every layer, its time step, B and C normalised."""
    return mamba(config, norms=(RMSNorm(1, config.mixer_rms_eps, affine=False),) * 3)


family(
    "falcon_mamba",
    config=FalconMambaConfig,
    tasks={"causal-lm": lambda c: CausalLM(falcon_mamba(c), tied=c.tie_word_embeddings), "base": falcon_mamba},
    architectures={"FalconMambaForCausalLM": "causal-lm", "FalconMambaModel": "base"},
    names=(rename("model.{rest}", "backbone.{rest}"),),
    ignore=IGNORED,
    prefix="backbone",
)
