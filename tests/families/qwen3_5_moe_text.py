"""Qwen3.5-MoE: gated delta nets, gated attention, experts beside a shared one."""

from cases import SMALL, case, reference


@case("qwen3_5_moe_text", moe=True)
def _():
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    config = Qwen3_5MoeTextConfig(
        **{k: v for k, v in SMALL.items() if k != "intermediate_size"},
        head_dim=24,
        full_attention_interval=2,
        linear_conv_kernel_dim=3,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        attention_bias=True,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=28,
        num_experts=6,
        num_experts_per_tok=3,
    )
    return reference(Qwen3_5MoeForCausalLM, config)
