"""Qwen2-MoE: a gated shared expert, windows in some layers, a dense layer in between."""

from cases import SMALL, case, reference

MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 36}


@case("qwen2_moe", moe=True)
def _():
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    more = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "decoder_sparse_step": 2}
    return reference(Qwen2MoeForCausalLM, Qwen2MoeConfig(**{**SMALL, "num_hidden_layers": 4}, **MOE, **more))


@case("qwen2_moe-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import Qwen2MoeConfig, Qwen2MoeForSequenceClassification

    config = Qwen2MoeConfig(**SMALL, **MOE, norm_topk_prob=True, qkv_bias=False, mlp_only_layers=[0], num_labels=3)
    return reference(Qwen2MoeForSequenceClassification, config)
