"""Phi-2: parallel blocks, half of each head rotated, biases everywhere."""

from cases import SMALL, case, reference


@case("phi")
def _():
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(**SMALL, qk_layernorm=True)
    return reference(PhiForCausalLM, config)


@case("phi-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import PhiConfig, PhiForSequenceClassification

    return reference(PhiForSequenceClassification, PhiConfig(**SMALL, num_labels=3))
