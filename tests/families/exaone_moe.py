"""K-EXAONE: windows with rotary positions, global layers without, DeepSeek-V3's experts."""

from cases import SMALL, case, reference


@case("exaone_moe", moe=True)
def _():
    from transformers import ExaoneMoeConfig, ExaoneMoeForCausalLM

    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1}
    config = ExaoneMoeConfig(**SMALL, **experts, num_shared_experts=2, sliding_window=4, sliding_window_pattern=2)
    return reference(ExaoneMoeForCausalLM, config)
