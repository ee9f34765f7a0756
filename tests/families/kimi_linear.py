"""Kimi Linear: channel decays in two layers, latent attention without positions in one; a dense layer, then experts."""

from cases import SMALL, case, reference


@case("kimi_linear", moe=True)
def _():
    from transformers import KimiLinearConfig, KimiLinearForCausalLM

    config = KimiLinearConfig(
        **{**SMALL, "num_key_value_heads": 6},
        **{"kv_lora_rank": 10, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14},
        **{
            "n_group": 4,
            "topk_group": 2,
            "num_local_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
        },
        **{"linear_head_dim": 10, "linear_num_heads": 3, "linear_conv_kernel_dim": 3, "n_shared_experts": 2},
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    )
    return reference(KimiLinearForCausalLM, config)
