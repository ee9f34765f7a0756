"""Seed-OSS: biases on queries, keys and values only."""

from cases import SMALL, case, reference


@case("seed_oss")
def _():
    from transformers import SeedOssConfig, SeedOssForCausalLM

    config = SeedOssConfig(**SMALL, head_dim=16, mlp_bias=True)
    return reference(SeedOssForCausalLM, config)


@case("seed_oss-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import SeedOssConfig, SeedOssForSequenceClassification

    return reference(SeedOssForSequenceClassification, SeedOssConfig(**SMALL, num_labels=3))
