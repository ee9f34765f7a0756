"""Qwen3: norms on q and k; windows by layer."""

from cases import SMALL, case, reference


@case("qwen3")
def _():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return reference(Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16))


@case("qwen3-window", variant=True)
def _():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen3Config(
        **SMALL, head_dim=16, attention_bias=True, use_sliding_window=True, sliding_window=3, layer_types=kinds
    )
    return reference(Qwen3ForCausalLM, config)
