"""SmolLM3: layers without positions, and windows on them."""

from cases import SMALL, case, reference


@case("smollm3")
def _():
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    config = SmolLM3Config(
        **SMALL,
        head_dim=16,
        attention_bias=True,
        mlp_bias=True,
        no_rope_layer_interval=2,
        use_sliding_window=True,
        sliding_window=4,
    )
    return reference(SmolLM3ForCausalLM, config)


@case("smollm3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import SmolLM3Config, SmolLM3ForSequenceClassification

    return reference(SmolLM3ForSequenceClassification, SmolLM3Config(**SMALL, num_labels=3))
