"""Granite MoE: four multipliers, softmax over the chosen experts."""

from cases import SMALL, case, reference

GRANITE = {
    **{"num_local_experts": 5, "num_experts_per_tok": 2, "embedding_multiplier": 1.7, "logits_scaling": 2.5},
    **{"residual_multiplier": 0.6, "attention_multiplier": 0.2},
}


@case("granitemoe", moe=True)
def _():
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    return reference(GraniteMoeForCausalLM, GraniteMoeConfig(**SMALL, **GRANITE, attention_bias=True))
