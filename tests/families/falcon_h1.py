"""Falcon-H1: attention beside a state space in every layer; with and without the gated norm."""

from cases import SMALL, case, reference

SIZES = {
    **SMALL,
    "num_hidden_layers": 2,
    "mamba_n_heads": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 10,
    "mamba_chunk_size": 4,
}
FACTORS = {
    "lm_head_multiplier": 0.7,
    "embedding_multiplier": 1.7,
    "mlp_multipliers": [0.8, 1.3],
    "key_multiplier": 0.6,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.9,
    "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.9],
    "ssm_in_multiplier": 1.4,
    "ssm_out_multiplier": 0.6,
}


@case("falcon_h1")
def _():
    from transformers import FalconH1Config, FalconH1ForCausalLM

    config = FalconH1Config(
        **SIZES, **FACTORS, head_dim=16, mamba_n_groups=2, mamba_rms_norm=True, mamba_norm_before_gate=False
    )
    return reference(FalconH1ForCausalLM, config)


@case("falcon_h1-plain", variant=True)
def _():
    from transformers import FalconH1Config, FalconH1ForCausalLM

    more = {"attention_bias": True, "mlp_bias": True, "projectors_bias": True}
    return reference(FalconH1ForCausalLM, FalconH1Config(**SIZES, **more, mamba_conv_bias=False))
