"""GLM-4.5: heads rotated in part, normed queries and keys, DeepSeek-V3's experts."""

from cases import SMALL, case, reference


@case("glm4_moe", moe=True)
def _():
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    groups = {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.7,
    }
    more = {"moe_intermediate_size": 24, "head_dim": 16, "use_qk_norm": True, "attention_bias": True}
    return reference(Glm4MoeForCausalLM, Glm4MoeConfig(**SMALL, **groups, **more))


@case("glm4_moe-base", task="base", moe=True, variant=True)
def _():
    from transformers import Glm4MoeConfig, Glm4MoeModel

    more = {"moe_intermediate_size": 24, "n_routed_experts": 6, "num_experts_per_tok": 2, "partial_rotary_factor": 0.25}
    return reference(Glm4MoeModel, Glm4MoeConfig(**{**SMALL, "num_hidden_layers": 2}, **more, head_dim=16))
