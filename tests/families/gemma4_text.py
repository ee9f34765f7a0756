"""Gemma 4, text: layers that read others' keys, an input for each layer, experts beside the MLP; and the dense model, whose
global layers have wider heads, and values from keys."""

from cases import SMALL, case, reference

ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
}
E = {
    **{"num_hidden_layers": 5, "hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 97},
    **{"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24}


def model(**more):
    import torch
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    config = Gemma4TextConfig(**{**SMALL, "head_dim": 16, "global_head_dim": 24, "rope_parameters": ROPE, **more})
    made = reference(Gemma4ForCausalLM, config)
    with torch.no_grad():
        for i, layer in enumerate(made.model.layers):
            layer.layer_scalar.fill_(0.7 + 0.2 * i)
    return made


# The hidden states of transformers move by 1.2 of 3.5 in bfloat16.
FLIPS = {"bfloat16_is_close": "rounding chooses other experts, in transformers too"}


@case("gemma4_text", moe=True, expected_failures=FLIPS)
def _():
    return model(**E, **EXPERTS, sliding_window=4)


@case("gemma4_text-dense", variant=True)
def _():
    return model(
        num_global_key_value_heads=3,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        sliding_window=4,
        attention_bias=True,
        final_logit_softcapping=3.0,
    )
