"""dots.llm1: normed queries and keys, a window in the last layers, DeepSeek-V3's experts after a dense layer."""

from cases import SMALL, case, reference


@case("dots1", moe=True)
def _():
    from transformers import Dots1Config, Dots1ForCausalLM

    groups = {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 2}
    more = {"moe_intermediate_size": 24, "head_dim": 16, "first_k_dense_replace": 1, "attention_bias": True}
    return reference(Dots1ForCausalLM, Dots1Config(**SMALL, **groups, **more, sliding_window=4, max_window_layers=1))
