"""StarCoder 2: LayerNorm, a plain MLP, biases, a window."""

from cases import SMALL, case, reference


@case("starcoder2")
def _():
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    config = Starcoder2Config(**SMALL, sliding_window=4)
    return reference(Starcoder2ForCausalLM, config)


@case("starcoder2-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Starcoder2Config, Starcoder2ForSequenceClassification

    return reference(Starcoder2ForSequenceClassification, Starcoder2Config(**SMALL, num_labels=3))
