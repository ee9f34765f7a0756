"""Falcon-Mamba: Mamba with norms that have no weights."""

from cases import case, reference
from families.mamba import SIZES


@case("falcon_mamba", recurrent=True)
def _():
    from transformers import FalconMambaConfig, FalconMambaForCausalLM

    return reference(FalconMambaForCausalLM, FalconMambaConfig(**SIZES, mixer_rms_eps=0.1))
