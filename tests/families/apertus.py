"""Apertus: a learned activation, scaled positions."""

from cases import SMALL, case, reference


@case("apertus")
def _():
    from transformers import ApertusConfig, ApertusForCausalLM

    config = ApertusConfig(
        **SMALL,
        head_dim=16,
        attention_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    )
    return reference(ApertusForCausalLM, config)
