"""Phi-3: fused projections, longrope with its trained length at the top, part of each head rotated."""

from cases import SMALL, case, reference


@case("phi3")
def _():
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(**SMALL, sliding_window=4)
    return reference(Phi3ForCausalLM, config)


@case("phi3-longrope", variant=True)
def _():
    from transformers import Phi3Config, Phi3ForCausalLM

    rope = {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [2.0, 2.5, 3.0],
    }
    config = Phi3Config(**SMALL, original_max_position_embeddings=8, rope_parameters=rope)
    return reference(Phi3ForCausalLM, config)


@case("phi3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Phi3Config, Phi3ForSequenceClassification

    return reference(Phi3ForSequenceClassification, Phi3Config(**SMALL, num_labels=3))
