"""MiniMax-M2: normed rows, heads rotated in part, sigmoid and correction bias."""

from cases import SMALL, case, reference


@case("minimax_m2", moe=True)
def _():
    from transformers import MiniMaxM2Config, MiniMaxM2ForCausalLM

    config = MiniMaxM2Config(**SMALL, head_dim=16, num_local_experts=6, num_experts_per_tok=2, rotary_dim=8)
    return reference(MiniMaxM2ForCausalLM, config)
