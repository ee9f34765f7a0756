"""MiniMax: lightning attention in blocks shorter than the sequence, softmax attention with a window, weighed residuals.

Where the first layer is linear, transformers forgets the window and the padding once it has a cache
(`findings/minimax-cache-forgets-the-mask.sh`): the case that generates begins with softmax attention.
"""

from cases import SMALL, case, reference


@case("minimax", moe=True)
def _():
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    config = MiniMaxConfig(
        **{**SMALL, "num_hidden_layers": 4},  # two of each kind, which stack
        head_dim=16,
        block_size=4,
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=4,
        full_attn_alpha_factor=1.1,
        full_attn_beta_factor=0.8,
        linear_attn_alpha_factor=0.9,
        linear_attn_beta_factor=1.2,
        mlp_alpha_factor=1.3,
        mlp_beta_factor=0.7,
    )
    return reference(MiniMaxForCausalLM, config)


@case("minimax-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import MiniMaxConfig, MiniMaxForSequenceClassification

    kinds = ["linear_attention", "linear_attention", "full_attention"]
    config = MiniMaxConfig(**SMALL, num_local_experts=3, num_labels=3, layer_types=kinds, block_size=4)
    return reference(MiniMaxForSequenceClassification, config)
