"""ERNIE 4.5 MoE: rotated neighbours, a correction bias on softmax, dense layers at both ends."""

from cases import SMALL, case, reference


@case("ernie4_5_moe", moe=True)
def _():
    from transformers import Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM

    moe = {"moe_num_experts": 5, "moe_k": 2, "moe_num_shared_experts": 2, "moe_intermediate_size": 24}
    more = {"use_bias": True, "moe_layer_start_index": 1, "moe_layer_end_index": 2, "tie_word_embeddings": False}
    return reference(Ernie4_5_MoeForCausalLM, Ernie4_5_MoeConfig(**{**SMALL, "num_hidden_layers": 4}, **moe, **more))
