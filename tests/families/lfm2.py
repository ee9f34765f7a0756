"""LFM2: short convolutions and attention; the width of its MLP is derived."""

from cases import SMALL, case, reference


@case("lfm2")
def _():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        **SMALL,
        layer_types=["conv", "full_attention", "conv"],
        block_multiple_of=12,
        block_ffn_dim_multiplier=1.3,
    )
    return reference(Lfm2ForCausalLM, config)
