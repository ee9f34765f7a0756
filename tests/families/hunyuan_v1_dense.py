"""Hunyuan: norms after the rotation, a stretched base."""

from cases import SMALL, case, reference


@case("hunyuan_v1_dense")
def _():
    from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM

    config = HunYuanDenseV1Config(
        **SMALL,
        head_dim=16,
        attention_bias=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 5.0, "factor": 1.0},
    )
    return reference(HunYuanDenseV1ForCausalLM, config)


@case("hunyuan_v1_dense-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForSequenceClassification

    return reference(HunYuanDenseV1ForSequenceClassification, HunYuanDenseV1Config(**SMALL, head_dim=16, num_labels=3))
