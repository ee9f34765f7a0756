"""Hunyuan MoE: queries and keys normed after they are rotated, another number of experts in each layer."""

from cases import SMALL, case, reference


@case("hunyuan_v1_moe", moe=True)
def _():
    from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForCausalLM

    config = HunYuanMoEV1Config(**SMALL, head_dim=16, num_experts=5, moe_topk=[2, 1, 3], attention_bias=True)
    return reference(HunYuanMoEV1ForCausalLM, config)


@case("hunyuan_v1_moe-classifier", task="sequence-classification", moe=True, variant=True)
def _():
    from transformers import HunYuanMoEV1Config, HunYuanMoEV1ForSequenceClassification

    config = HunYuanMoEV1Config(
        **{**SMALL, "num_hidden_layers": 2}, head_dim=16, num_experts=4, moe_topk=2, num_labels=3
    )
    return reference(HunYuanMoEV1ForSequenceClassification, config)
