"""Laguna: heads, gates, windows, a rotary table and a feed-forward part by layer."""

from cases import SMALL, case, reference

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
OWN = {
    "head_dim": 16,
    "sliding_window": 5,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}


@case("laguna", moe=True)
def _():
    from transformers import LagunaConfig, LagunaForCausalLM

    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    }
    config = LagunaConfig(
        **SMALL,
        **OWN,
        layer_types=KINDS,
        rope_parameters=rope,
        num_attention_heads_per_layer=[6, 4, 2],
        moe_routed_scaling_factor=1.5,
        moe_router_logit_softcapping=0.3,
    )
    return reference(LagunaForCausalLM, config)


@case("laguna-elements", moe=True, variant=True)
def _():
    from transformers import LagunaConfig, LagunaForCausalLM

    own = {"gating": "per-element", "attention_bias": True, "tie_word_embeddings": True}
    return reference(LagunaForCausalLM, LagunaConfig(**SMALL, **OWN, **own, mlp_layer_types=["sparse"] * 3))
