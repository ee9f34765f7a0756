"""DiffLlama: heads in pairs, one less a part of the other."""

from cases import SMALL, case, reference

HEADS = {"num_attention_heads": 12, "num_key_value_heads": 4}


@case("diffllama")
def _():
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

    return reference(DiffLlamaForCausalLM, DiffLlamaConfig(**{**SMALL, **HEADS}, head_dim=8, attention_bias=True))


@case("diffllama-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import DiffLlamaConfig, DiffLlamaForSequenceClassification

    return reference(DiffLlamaForSequenceClassification, DiffLlamaConfig(**SMALL, num_labels=3))
