"""BioGPT: learned positions, a head of its own name."""

from cases import SMALL, case, reference


@case("biogpt")
def _():
    from transformers import BioGptConfig, BioGptForCausalLM

    small = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    return reference(BioGptForCausalLM, BioGptConfig(**small, tie_word_embeddings=False, scale_embedding=True))
