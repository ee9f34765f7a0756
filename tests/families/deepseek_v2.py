"""DeepSeek-V2: latent attention, experts chosen by softmax within the best groups."""

from cases import SMALL, case, reference

SIZES = {
    **{**SMALL, "num_key_value_heads": None},
    **{"kv_lora_rank": 10, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14, "n_shared_experts": 2},
    **{"n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
}
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}


@case("deepseek_v2", moe=True)
def _():
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    return reference(DeepseekV2ForCausalLM, DeepseekV2Config(**SIZES, **GROUPS, q_lora_rank=None, mlp_bias=True))


@case("deepseek_v2-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import DeepseekV2Config, DeepseekV2ForSequenceClassification

    config = DeepseekV2Config(**SIZES, q_lora_rank=20, attention_bias=True, num_labels=3)
    return reference(DeepseekV2ForSequenceClassification, config)
