"""LFM2-MoE: short convolutions, attention, a dense layer and experts with a bias on their choice."""

from cases import SMALL, case, reference


@case("lfm2_moe", moe=True)
def _():
    import torch
    from transformers import Lfm2MoeConfig, Lfm2MoeForCausalLM

    config = Lfm2MoeConfig(
        **SMALL,
        layer_types=["conv", "full_attention", "conv"],
        moe_intermediate_size=28,
        num_dense_layers=1,
        num_experts=6,
        num_experts_per_tok=3,
        routed_scaling_factor=1.5,
        tie_word_embeddings=False,
    )
    model = reference(Lfm2MoeForCausalLM, config)
    for layer in model.model.layers[1:]:
        layer.feed_forward.expert_bias.copy_(torch.linspace(-0.3, 0.3, 6))
    return model
