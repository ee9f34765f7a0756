"""OLMo 2: norms after the parts, and on queries and keys before the split into heads."""

from cases import SMALL, case, reference


@case("olmo2")
def _():
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(**SMALL, head_dim=16, attention_bias=True)
    return reference(Olmo2ForCausalLM, config)


@case("olmo2-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Olmo2Config, Olmo2ForSequenceClassification

    return reference(Olmo2ForSequenceClassification, Olmo2Config(**SMALL, num_labels=3))
