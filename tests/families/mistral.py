"""Mistral: every layer looks through a window."""

from cases import SMALL, case, reference


@case("mistral")
def _():
    from transformers import MistralConfig, MistralForCausalLM

    return reference(MistralForCausalLM, MistralConfig(**SMALL, head_dim=16, sliding_window=4))


@case("mistral-full", variant=True)
def _():
    from transformers import MistralConfig, MistralForCausalLM

    return reference(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=None, tie_word_embeddings=True))
