"""DeepSeek-V3: latent attention, yarn with its factor on the scores, experts in groups after a dense layer."""

from cases import SMALL, case, reference

LATENT = {"kv_lora_rank": 10, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14}
GROUPS = {
    **{"n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 24},
    **{"first_k_dense_replace": 1, "routed_scaling_factor": 1.7},
}
YARN = {
    **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 99.0},
    **{"mscale": 0.7, "mscale_all_dim": 1.3},
}
SIZES = {**SMALL, "num_key_value_heads": None}


@case("deepseek_v3", moe=True)
def _():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        **SIZES, **LATENT, **GROUPS, q_lora_rank=20, n_shared_experts=2, attention_bias=True, rope_parameters=YARN
    )
    return reference(DeepseekV3ForCausalLM, config)


@case("deepseek_v3-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import DeepseekV3Config, DeepseekV3ForSequenceClassification

    facts = {**SIZES, **LATENT, **GROUPS, "norm_topk_prob": False}
    config = DeepseekV3Config(**facts, q_lora_rank=None, rope_interleave=False, num_labels=3)
    return reference(DeepseekV3ForSequenceClassification, config)
