"""AFMoE: sigmoid gates, norms around each part, positions in windows only, a dense layer, shared experts."""

from cases import SMALL, case, reference

OWN = {"head_dim": 16, "sliding_window": 5, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@case("afmoe", moe=True)
def _():
    from transformers import AfmoeConfig, AfmoeForCausalLM

    own = {"global_attn_every_n_layers": 2, "route_scale": 1.5, "mup_enabled": True, "attention_bias": True}
    return reference(AfmoeForCausalLM, AfmoeConfig(**SMALL, **OWN, **own))


@case("afmoe-tied", moe=True, variant=True)
def _():
    from transformers import AfmoeConfig, AfmoeForCausalLM

    own = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "num_dense_layers": 0}
    return reference(
        AfmoeForCausalLM, AfmoeConfig(**SMALL, **OWN, **own, tie_word_embeddings=True, num_shared_experts=1)
    )
