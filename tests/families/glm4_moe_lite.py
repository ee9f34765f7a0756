"""GLM-4.7-Flash: latent attention, DeepSeek-V3's experts, one dense layer."""

from cases import SMALL, case, reference


@case("glm4_moe_lite", moe=True)
def _():
    from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM

    latent = {"kv_lora_rank": 10, "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14}
    more = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = Glm4MoeLiteConfig(
        **{**SMALL, "num_key_value_heads": 6}, **latent, **more, mlp_layer_types=["sparse", "dense", "sparse"]
    )
    return reference(Glm4MoeLiteForCausalLM, config)
