"""Ministral 3: yarn, and queries that grow with their position."""

from cases import SMALL, case, reference


@case("ministral3")
def _():
    from transformers import Ministral3Config, Ministral3ForCausalLM

    config = Ministral3Config(
        **SMALL,
        head_dim=16,
        sliding_window=4,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "llama_4_scaling_beta": 0.7,
        },
    )
    return reference(Ministral3ForCausalLM, config)


@case("ministral3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Ministral3Config, Ministral3ForSequenceClassification

    rope = {
        "rope_type": "default",
        "rope_theta": 100.0,
        "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 8,
    }
    config = Ministral3Config(**SMALL, rope_parameters=rope, num_labels=3)
    return reference(Ministral3ForSequenceClassification, config)
