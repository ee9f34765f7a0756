"""StableLM: part of each head rotated, a norm for each head."""

from cases import SMALL, case, reference


@case("stablelm")
def _():
    from transformers import StableLmConfig, StableLmForCausalLM

    config = StableLmConfig(**SMALL, use_qkv_bias=True, qk_layernorm=True, partial_rotary_factor=0.5)
    return reference(StableLmForCausalLM, config)


@case("stablelm-parallel", variant=True)
def _():
    from transformers import StableLmConfig, StableLmForCausalLM

    return reference(StableLmForCausalLM, StableLmConfig(**SMALL, use_parallel_residual=True))


@case("stablelm-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import StableLmConfig, StableLmForSequenceClassification

    return reference(StableLmForSequenceClassification, StableLmConfig(**SMALL, num_labels=3))
