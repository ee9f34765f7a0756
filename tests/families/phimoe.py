"""Phi-3.5-MoE: LayerNorms, two experts one after the other, longrope with factors of its own."""

from cases import SMALL, case, reference

LONGROPE = {
    **{"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 99.0},
    **{"short_factor": [1.0 + 0.1 * i for i in range(4)], "long_factor": [2.0 + 0.5 * i for i in range(4)]},
    **{"short_mscale": 1.1, "long_mscale": 1.3},
}


@case("phimoe", moe=True)
def _():
    from transformers import PhimoeConfig, PhimoeForCausalLM

    more = {"num_local_experts": 5, "router_jitter_noise": 0.3, "attention_bias": True, "lm_head_bias": True}
    return reference(PhimoeForCausalLM, PhimoeConfig(**SMALL, **more, rope_parameters=LONGROPE))


@case("phimoe-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import PhimoeConfig, PhimoeForSequenceClassification

    config = PhimoeConfig(**SMALL, num_local_experts=4, sliding_window=4, num_labels=3)
    return reference(PhimoeForSequenceClassification, config)
