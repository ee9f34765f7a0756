"""Gemma 4, text: wider heads on global layers, whose values are their keys; a number for each layer."""

from cases import SMALL, case, reference


@case("gemma4_text")
def _():
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
    }
    config = Gemma4TextConfig(
        **SMALL,
        head_dim=16,
        global_head_dim=24,
        num_global_key_value_heads=3,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        sliding_window=4,
        attention_bias=True,
        final_logit_softcapping=3.0,
        rope_parameters=rope,
    )
    model = reference(Gemma4ForCausalLM, config)
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            layer.layer_scalar.fill_(0.7 + 0.2 * i)
    return model
