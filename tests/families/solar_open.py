"""Solar Open: DeepSeek-V3's experts in every layer."""

from cases import SMALL, case, reference

SIZES = {name: value for name, value in SMALL.items() if name != "intermediate_size"}


@case("solar_open", moe=True)
def _():
    from transformers import SolarOpenConfig, SolarOpenForCausalLM

    groups = {"n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    more = {"moe_intermediate_size": 24, "head_dim": 16, "attention_bias": True, "routed_scaling_factor": 1.7}
    return reference(SolarOpenForCausalLM, SolarOpenConfig(**SIZES, **groups, **more))
