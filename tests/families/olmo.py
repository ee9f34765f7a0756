"""OLMo: norms without parameters, clipped projections."""

from cases import SMALL, case, reference


@case("olmo")
def _():
    from transformers import OlmoConfig, OlmoForCausalLM

    config = OlmoConfig(**SMALL, head_dim=16, attention_bias=True, clip_qkv=0.3)
    return reference(OlmoForCausalLM, config)


@case("olmo-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import OlmoConfig, OlmoForSequenceClassification

    return reference(OlmoForSequenceClassification, OlmoConfig(**SMALL, num_labels=3))
