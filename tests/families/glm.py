"""GLM-4: part of each head rotated in neighbours, a fused gate."""

from cases import SMALL, case, reference


@case("glm")
def _():
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(**SMALL, head_dim=16)
    return reference(GlmForCausalLM, config)


@case("glm-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import GlmConfig, GlmForSequenceClassification

    return reference(GlmForSequenceClassification, GlmConfig(**SMALL, num_labels=3))
