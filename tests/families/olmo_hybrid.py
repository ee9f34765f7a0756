"""OLMo Hybrid: delta nets that may change signs beside one attention; without positions, and grouped values."""

from cases import SMALL, case, reference

LINEAR = {"linear_num_key_heads": 2, "linear_key_head_dim": 6, "linear_conv_kernel_dim": 3}


@case("olmo_hybrid")
def _():
    from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

    config = OlmoHybridConfig(
        **SMALL,
        **LINEAR,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_value_heads=2,
        linear_value_head_dim=6,  # as wide as keys: other widths transformers writes in parts that no file has
    )
    return reference(OlmoHybridForCausalLM, config)


# Its reference writes the convolutions of queries, keys and values in three equal parts, whatever their widths.
@case("olmo_hybrid-nope", variant=True, files=False)
def _():
    from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

    more = {"linear_num_value_heads": 4, "linear_value_head_dim": 9, "linear_allow_neg_eigval": False}
    rope = {"rope_type": "default", "rope_theta": None}
    config = OlmoHybridConfig(**SMALL, **LINEAR, **more, attention_bias=True, rope_parameters=rope)
    return reference(OlmoHybridForCausalLM, config)
