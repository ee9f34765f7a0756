"""Nemotron-H: one layer of each kind, the experts in a latent space."""

from cases import SMALL, case, reference


@case("nemotron_h", moe=True)
def _():
    import torch
    from transformers import NemotronHConfig, NemotronHForCausalLM

    sizes = {k: v for k, v in SMALL.items() if k != "num_hidden_layers"}
    config = NemotronHConfig(
        **sizes,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        head_dim=12,
        mlp_bias=True,
        ssm_state_size=10,
        mamba_num_heads=8,
        mamba_head_dim=6,
        n_groups=2,
        conv_kernel=3,
        chunk_size=4,
        n_routed_experts=6,
        moe_intermediate_size=20,
        moe_shared_expert_intermediate_size=28,
        moe_latent_size=24,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=1.5,
    )
    model = reference(NemotronHForCausalLM, config)
    model.model.layers[1].mixer.gate.e_score_correction_bias.copy_(torch.linspace(-0.3, 0.3, 6))
    return model
