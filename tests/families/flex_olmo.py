"""FlexOlmo: norms after the parts, normed rows, experts in every layer."""

from cases import SMALL, case, reference


@case("flex_olmo", moe=True)
def _():
    from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

    return reference(FlexOlmoForCausalLM, FlexOlmoConfig(**SMALL, num_experts=5, num_experts_per_tok=3))
