"""Jamba: Mamba with normed time steps, one layer of attention, experts in every second MLP."""

from cases import SMALL, case, reference


@case("jamba", moe=True)
def _():
    from transformers import JambaConfig, JambaForCausalLM

    config = JambaConfig(
        **SMALL,
        attn_layer_period=3,
        attn_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=6,
        mamba_d_conv=3,
        mamba_dt_rank=5,
    )
    return reference(JambaForCausalLM, config)
