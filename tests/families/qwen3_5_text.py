"""Qwen3.5: gated delta nets with four projections, gated attention."""

from cases import SMALL, case, reference


@case("qwen3_5_text")
def _():
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        **SMALL,
        head_dim=24,
        full_attention_interval=2,
        linear_conv_kernel_dim=3,
        linear_key_head_dim=8,
        linear_value_head_dim=12,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        tie_word_embeddings=True,
    )
    return reference(Qwen3_5ForCausalLM, config)
