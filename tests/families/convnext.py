"""ConvNeXt: stages of depthwise convolutions."""

from typing import Any

from cases import images, reference

SIZES: dict[str, Any] = {
    "hidden_sizes": [8, 12, 20],
    "depths": [1, 2, 1],
    "num_stages": 3,
    "image_size": 24,
    "patch_size": 2,
}


@images("convnext", task="base")
def _():
    from transformers import ConvNextConfig, ConvNextModel

    return reference(ConvNextModel, ConvNextConfig(**SIZES, layer_scale_init_value=0.3))


@images("convnext-classifier", task="image-classification", variant=True)
def _():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(**SIZES, layer_scale_init_value=0.0, num_labels=5, hidden_act="gelu_new")
    return reference(ConvNextForImageClassification, config)
