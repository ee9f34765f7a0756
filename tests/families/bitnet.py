"""BitNet in floats: norms inside attention and MLP."""

from cases import SMALL, case, reference


@case("bitnet")
def _():
    from transformers import BitNetConfig, BitNetForCausalLM

    return reference(BitNetForCausalLM, BitNetConfig(**SMALL, attention_bias=True))
