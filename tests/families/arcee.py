"""AFM: a plain MLP with a squared ReLU."""

from cases import SMALL, case, reference


@case("arcee")
def _():
    from transformers import ArceeConfig, ArceeForCausalLM

    config = ArceeConfig(**SMALL, head_dim=16, attention_bias=True, mlp_bias=True)
    return reference(ArceeForCausalLM, config)


@case("arcee-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import ArceeConfig, ArceeForSequenceClassification

    return reference(ArceeForSequenceClassification, ArceeConfig(**SMALL, num_labels=3))
