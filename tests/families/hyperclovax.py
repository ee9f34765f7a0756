"""HyperCLOVA X: four norms a layer, and multipliers."""

from cases import SMALL, case, reference

MULTIPLIERS = {"embedding_multiplier": 3.0, "logits_scaling": 0.4, "residual_multiplier": 0.6}


@case("hyperclovax")
def _():
    from transformers import HyperCLOVAXConfig, HyperCLOVAXForCausalLM

    config = HyperCLOVAXConfig(**SMALL, **MULTIPLIERS, attention_multiplier=0.3, attention_bias=True, mlp_bias=True)
    return reference(HyperCLOVAXForCausalLM, config)


@case("hyperclovax-pre-norm", variant=True)
def _():
    from transformers import HyperCLOVAXConfig, HyperCLOVAXForCausalLM

    return reference(
        HyperCLOVAXForCausalLM, HyperCLOVAXConfig(**SMALL, **MULTIPLIERS, head_dim=16, use_post_norm=False)
    )
