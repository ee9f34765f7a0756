"""Mistral 4: latent attention whose queries grow with their position, softmax over experts in groups."""

from cases import SMALL, case, reference

SIZES = {
    **{
        **SMALL,
        "num_key_value_heads": None,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 64,
    },
    **{
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 14,
        "moe_intermediate_size": 24,
    },
    **{"n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7},
    "rope_parameters": {
        **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4, "rope_theta": 99.0},
        **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3, "max_position_embeddings": 64},
    },
}


@case("mistral4", moe=True)
def _():
    from transformers import Mistral4Config, Mistral4ForCausalLM

    return reference(Mistral4ForCausalLM, Mistral4Config(**SIZES, q_lora_rank=20, attention_bias=True))


@case("mistral4-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import Mistral4Config, Mistral4ForSequenceClassification

    config = Mistral4Config(**{**SIZES, "num_hidden_layers": 2}, q_lora_rank=None, rope_interleave=False, num_labels=3)
    return reference(Mistral4ForSequenceClassification, config)
