"""Mixtral: experts chosen by token."""

from cases import SMALL, case, reference


@case("mixtral", moe=True)
def _():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**SMALL, head_dim=16, num_local_experts=5, num_experts_per_tok=2, sliding_window=4)
    return reference(MixtralForCausalLM, config)


@case("mixtral-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import MixtralConfig, MixtralForSequenceClassification

    return reference(MixtralForSequenceClassification, MixtralConfig(**SMALL, num_local_experts=3, num_labels=3))
