"""Qwen3-MoE: normed queries and keys, softmax over many small experts, a dense layer in between."""

from cases import SMALL, case, reference

MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@case("qwen3_moe", moe=True)
def _():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    more = {"head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4}
    return reference(Qwen3MoeForCausalLM, Qwen3MoeConfig(**SMALL, **MOE, **more, mlp_only_layers=[1]))


@case("qwen3_moe-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import Qwen3MoeConfig, Qwen3MoeForSequenceClassification

    config = Qwen3MoeConfig(**SMALL, **MOE, norm_topk_prob=True, decoder_sparse_step=2, num_labels=3)
    return reference(Qwen3MoeForSequenceClassification, config)
