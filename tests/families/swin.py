"""Swin: windows that do not divide the image, shifted; absolute positions; an odd grid to merge."""

from typing import Any

from cases import images, reference

SIZES: dict[str, Any] = {"embed_dim": 12, "depths": [2, 3], "num_heads": [2, 3], "image_size": 28, "patch_size": 2}


@images("swin", task="base")
def _():
    from transformers import SwinConfig, SwinModel

    return reference(SwinModel, SwinConfig(**SIZES, window_size=4, mlp_ratio=2.0, use_absolute_embeddings=True))


@images("swin-classifier", task="image-classification", variant=True)
def _():
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        **{**SIZES, "image_size": 26}, window_size=5, num_labels=4, qkv_bias=False, hidden_act="gelu_new"
    )
    return reference(SwinForImageClassification, config)


@images("swin-masked", task="masked-image-modeling", variant=True)
def _():
    from transformers import SwinConfig, SwinForMaskedImageModeling

    return reference(SwinForMaskedImageModeling, SwinConfig(**SIZES, window_size=4, encoder_stride=4))
