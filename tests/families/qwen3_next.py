"""Qwen3-Next: gated delta nets, gated attention, experts beside a shared one, one dense layer."""

from cases import SMALL, case, reference


@case("qwen3_next", moe=True)
def _():
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        **SMALL,
        head_dim=16,
        attention_bias=True,
        full_attention_interval=2,
        linear_conv_kernel_dim=3,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        mlp_only_layers=[1],
        moe_intermediate_size=20,
        shared_expert_intermediate_size=28,
        num_experts=6,
        num_experts_per_tok=3,
    )
    return reference(Qwen3NextForCausalLM, config)
