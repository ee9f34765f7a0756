"""Qwen2: biases on q, k and v; windows from a layer on."""

from cases import SMALL, case, reference


@case("qwen2")
def _():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return reference(Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=True))


@case("qwen2-window", variant=True)
def _():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    return reference(Qwen2ForCausalLM, config)


@case("qwen2-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    return reference(Qwen2ForSequenceClassification, Qwen2Config(**SMALL, num_labels=4))
