"""Mistral: every layer looks through a window."""

from cases import SMALL, case, reference

WINDOW = {
    "right_padding_is_invisible_to_the_cache": "a window counts places, so padding between a prompt and its continuation "
    "takes room in it; generate moves padding to the left"
}


@case("mistral", expected_failures=WINDOW)
def _():
    from transformers import MistralConfig, MistralForCausalLM

    return reference(MistralForCausalLM, MistralConfig(**SMALL, head_dim=16, sliding_window=4))


@case("mistral-full", variant=True)
def _():
    from transformers import MistralConfig, MistralForCausalLM

    return reference(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=None, tie_word_embeddings=True))
