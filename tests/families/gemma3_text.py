"""Gemma 3, text: five local layers to a global one, four norms a layer."""

from cases import SMALL, case, reference


@case("gemma3")
def _():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {**SMALL, "num_hidden_layers": 7}
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    }
    config = Gemma3TextConfig(
        **sizes,
        head_dim=16,
        sliding_window=4,
        query_pre_attn_scalar=20,
        final_logit_softcapping=3.0,
        attention_bias=True,
        rope_parameters=rope,
    )
    return reference(Gemma3ForCausalLM, config)


@case("gemma3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Gemma3TextConfig, Gemma3TextForSequenceClassification

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=4, layer_types=kinds, num_labels=3)
    return reference(Gemma3TextForSequenceClassification, config)
