"""Nemotron: LayerNorm around 1, a squared ReLU, part of each head rotated."""

from cases import SMALL, case, reference


@case("nemotron")
def _():
    from transformers import NemotronConfig, NemotronForCausalLM

    config = NemotronConfig(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True)
    return reference(NemotronForCausalLM, config)


@case("nemotron-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import NemotronConfig, NemotronForSequenceClassification

    return reference(NemotronForSequenceClassification, NemotronConfig(**SMALL, num_labels=3))
