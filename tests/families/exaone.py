"""EXAONE 3: files of other names."""

from cases import SMALL, case, reference


@case("exaone")
def _():
    from transformers import ExaoneConfig, LlamaForCausalLM

    return reference(LlamaForCausalLM, ExaoneConfig(**SMALL, head_dim=16, tie_word_embeddings=True))


@case("exaone-base", task="base", variant=True)
def _():
    from transformers import ExaoneConfig, LlamaModel

    return reference(LlamaModel, ExaoneConfig(**SMALL))
