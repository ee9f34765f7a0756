"""Command R: parallel blocks, interleaved rotation, a norm for each head."""

from cases import SMALL, case, reference


@case("cohere")
def _():
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(**SMALL, head_dim=16, use_qk_norm=True, attention_bias=True, logit_scale=0.5)
    return reference(CohereForCausalLM, config)
