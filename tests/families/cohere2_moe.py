"""Cohere 2 MoE: parallel blocks, windows, a dense layer in front, averaged with shared experts."""

from cases import SMALL, case, reference

SIZES = {**SMALL, "head_dim": 16, "num_experts": 5, "sliding_window": 4, "sliding_window_pattern": 2}


@case("cohere2_moe", moe=True)
def _():
    from transformers import Cohere2MoeConfig, Cohere2MoeForCausalLM

    more = {"num_shared_experts": 2, "expert_selection_fn": "sigmoid", "norm_topk_prob": False, "logit_scale": 0.4}
    config = Cohere2MoeConfig(**SIZES, **more, first_k_dense_replace=1, prefix_dense_intermediate_size=36)
    return reference(Cohere2MoeForCausalLM, config)


@case("cohere2_moe-base", task="base", moe=True, variant=True)
def _():
    from transformers import Cohere2MoeConfig, Cohere2MoeModel

    more = {"num_shared_experts": 1, "shared_expert_combination_strategy": "sum", "rms_norm_eps": 1e-5}
    return reference(Cohere2MoeModel, Cohere2MoeConfig(**SIZES, **more, attention_bias=True))
