"""Jais 2: LayerNorm, biases everywhere."""

from cases import SMALL, case, reference


@case("jais2")
def _():
    from transformers import Jais2Config, Jais2ForCausalLM

    return reference(Jais2ForCausalLM, Jais2Config(**SMALL, head_dim=16))
