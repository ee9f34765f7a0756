"""OLMoE: normed rows, clipped queries, keys and values, experts in every layer."""

from cases import SMALL, case, reference


@case("olmoe", moe=True)
def _():
    from transformers import OlmoeConfig, OlmoeForCausalLM

    more = {"num_experts": 5, "num_experts_per_tok": 2, "clip_qkv": 0.8, "attention_bias": True}
    return reference(OlmoeForCausalLM, OlmoeConfig(**SMALL, **more, norm_topk_prob=True, tie_word_embeddings=True))
