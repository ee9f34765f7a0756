"""Bamba: Mamba-2 layers in groups and one of attention, half of each head rotated."""

from cases import SMALL, case, reference


@case("bamba")
def _():
    from transformers import BambaConfig, BambaForCausalLM

    config = BambaConfig(
        **SMALL,
        attn_layer_indices=[1],
        attention_bias=True,
        mlp_bias=True,
        mamba_n_heads=8,
        mamba_n_groups=2,
        mamba_d_state=10,
        mamba_d_conv=3,
        mamba_chunk_size=4,
    )
    return reference(BambaForCausalLM, config)
