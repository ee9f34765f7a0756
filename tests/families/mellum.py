"""Mellum 2: a dense layer, windows, a rotary table for each kind of layer."""

from cases import SMALL, case, reference


@case("mellum", moe=True)
def _():
    from transformers import MellumConfig, MellumForCausalLM

    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 50.0},
        "sliding_attention": {"rope_type": "linear", "rope_theta": 20.0, "factor": 2.0},
    }
    config = MellumConfig(
        **SMALL,
        head_dim=16,
        attention_bias=True,
        sliding_window=5,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"],
        rope_parameters=rope,
    )
    return reference(MellumForCausalLM, config)
