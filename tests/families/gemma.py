"""Gemma: wide heads, scaled embeddings, norms around 1."""

from cases import SMALL, case, reference


@case("gemma")
def _():
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(**SMALL, head_dim=16, attention_bias=True, hidden_act="gelu")
    return reference(GemmaForCausalLM, config)


@case("gemma-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import GemmaConfig, GemmaForSequenceClassification

    return reference(GemmaForSequenceClassification, GemmaConfig(**SMALL, num_labels=3))
