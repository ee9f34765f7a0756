"""ConvNeXt V2: convolutions whose channels compete."""

from cases import images, reference

from .convnext import SIZES


@images("convnextv2", task="base")
def _():
    from transformers import ConvNextV2Config, ConvNextV2Model

    return reference(ConvNextV2Model, ConvNextV2Config(**{**SIZES, "image_size": (24, 36)}))


@images("convnextv2-classifier", task="image-classification", variant=True)
def _():
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    return reference(ConvNextV2ForImageClassification, ConvNextV2Config(**SIZES, num_labels=5, hidden_act="gelu_new"))
