"""I-JEPA: patches alone, and the mean of them."""

from cases import images, reference

from .vit import SIZES


@images("ijepa", task="base")
def _():
    from transformers import IJepaConfig, IJepaModel

    return reference(IJepaModel, IJepaConfig(**{**SIZES, "image_size": (24, 40)}, qkv_bias=False))


@images("ijepa-classifier", task="image-classification", variant=True)
def _():
    from transformers import IJepaConfig, IJepaForImageClassification

    return reference(IJepaForImageClassification, IJepaConfig(**SIZES, num_labels=5, hidden_act="gelu_new"))
