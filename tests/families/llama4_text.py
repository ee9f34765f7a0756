"""Llama 4, text: chunks shorter than the texts, layers without positions, one expert whose input is weighed."""

from cases import SMALL, case, reference

SIZES = {**SMALL, "head_dim": 16, "intermediate_size": 24, "intermediate_size_mlp": 36, "num_local_experts": 4}


@case("llama4_text", moe=True)
def _():
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    more = {"attention_chunk_size": 4, "no_rope_layer_interval": 3, "moe_layers": [0, 2], "attention_bias": True}
    return reference(Llama4ForCausalLM, Llama4TextConfig(**SIZES, **more, num_experts_per_tok=2))
