"""Granite MoE with a shared MLP."""

from cases import SMALL, case, reference
from families.granitemoe import GRANITE


@case("granitemoeshared", moe=True)
def _():
    from transformers import GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM

    config = GraniteMoeSharedConfig(**SMALL, **GRANITE, shared_intermediate_size=36, tie_word_embeddings=True)
    return reference(GraniteMoeSharedForCausalLM, config)
