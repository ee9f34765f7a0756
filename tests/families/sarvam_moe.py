"""Sarvam MoE: a dense layer, fused files of modules that are not, groups of experts."""

from cases import SMALL, case, reference

OWN = {"head_dim": 16, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@case("sarvam_moe", moe=True)
def _():
    from transformers import Glm4MoeForCausalLM, SarvamMoEConfig

    own = {**OWN, "attention_bias": True, "n_group": 2, "topk_group": 1, "n_shared_experts": 2}
    return reference(Glm4MoeForCausalLM, SarvamMoEConfig(**SMALL, **own))


@case("sarvam_moe-plain", moe=True, variant=True)
def _():
    from transformers import Glm4MoeForCausalLM, SarvamMoEConfig

    own = {"use_qk_norm": False, "first_k_dense_replace": 0, "norm_topk_prob": False, "tie_word_embeddings": True}
    return reference(Glm4MoeForCausalLM, SarvamMoEConfig(**SMALL, **OWN, **own, partial_rotary_factor=0.5))
