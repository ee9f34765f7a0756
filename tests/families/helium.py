"""Helium: heads rotated in neighbours."""

from cases import SMALL, case, reference


@case("helium")
def _():
    from transformers import HeliumConfig, HeliumForCausalLM

    config = HeliumConfig(**SMALL, head_dim=8, attention_bias=True, mlp_bias=True)
    return reference(HeliumForCausalLM, config)


@case("helium-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import HeliumConfig, HeliumForSequenceClassification

    return reference(HeliumForSequenceClassification, HeliumConfig(**SMALL, head_dim=8, num_labels=3))
