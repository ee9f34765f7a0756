"""Ministral: a window on some layers."""

from cases import SMALL, case, reference


@case("ministral")
def _():
    from transformers import MinistralConfig, MinistralForCausalLM

    config = MinistralConfig(
        **SMALL, head_dim=16, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    )
    return reference(MinistralForCausalLM, config)


@case("ministral-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import MinistralConfig, MinistralForSequenceClassification

    return reference(MinistralForSequenceClassification, MinistralConfig(**SMALL, head_dim=16, num_labels=3))
