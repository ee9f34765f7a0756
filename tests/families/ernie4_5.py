"""ERNIE 4.5: heads rotated in neighbours, biases everywhere."""

from cases import SMALL, case, reference


@case("ernie4_5")
def _():
    from transformers import Ernie4_5Config, Ernie4_5ForCausalLM

    config = Ernie4_5Config(**SMALL, head_dim=16, use_bias=True)
    return reference(Ernie4_5ForCausalLM, config)
