"""Granite 4: Mamba-2, attention without positions, experts beside an MLP; and the dense one with rotary positions."""

from cases import SMALL, case, reference

SIZES = {
    **SMALL,
    "shared_intermediate_size": 28,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 10,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 4,
    "embedding_multiplier": 1.7,
    "logits_scaling": 1.3,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
}


@case("granitemoehybrid", moe=True)
def _():
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    config = GraniteMoeHybridConfig(**SIZES, num_local_experts=6, num_experts_per_tok=3)
    return reference(GraniteMoeHybridForCausalLM, config)


@case("granitemoehybrid-dense", variant=True)
def _():
    from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

    config = GraniteMoeHybridConfig(**SIZES, num_local_experts=0, position_embedding_type="rope", attention_bias=True)
    return reference(GraniteMoeHybridForCausalLM, config)
