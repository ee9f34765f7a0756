"""InternLM 3: biases everywhere."""

from cases import SMALL, case, reference


@case("internlm3")
def _():
    from transformers import InternLM3Config, LlamaForCausalLM

    return reference(LlamaForCausalLM, InternLM3Config(**SMALL, head_dim=16, qkv_bias=True, bias=True))
