"""OLMo 3: OLMo 2 with windows by layer and scaled positions on the full layers."""

from cases import SMALL, case, reference


@case("olmo3")
def _():
    from transformers import Olmo3Config, Olmo3ForCausalLM

    config = Olmo3Config(
        **SMALL,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        },
    )
    return reference(Olmo3ForCausalLM, config)


@case("olmo3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Olmo3Config, Olmo3ForSequenceClassification

    return reference(Olmo3ForSequenceClassification, Olmo3Config(**SMALL, num_labels=3))
