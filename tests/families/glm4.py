"""GLM-4-0414: GLM-4 with norms around the parts."""

from cases import SMALL, case, reference


@case("glm4")
def _():
    from transformers import Glm4Config, Glm4ForCausalLM

    config = Glm4Config(**SMALL, head_dim=16, partial_rotary_factor=0.75, attention_bias=False)
    return reference(Glm4ForCausalLM, config)


@case("glm4-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Glm4Config, Glm4ForSequenceClassification

    return reference(Glm4ForSequenceClassification, Glm4Config(**SMALL, num_labels=3))
