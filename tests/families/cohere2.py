"""Command R7B: sliding layers rotate, full ones have no positions."""

from cases import SMALL, case, reference


@case("cohere2")
def _():
    from transformers import Cohere2Config, Cohere2ForCausalLM

    config = Cohere2Config(
        **SMALL,
        head_dim=10,
        sliding_window=4,
        attention_bias=True,
        logit_scale=0.5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return reference(Cohere2ForCausalLM, config)
