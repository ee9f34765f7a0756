"""ViT: patches of an oblong image, its pooler and its classifier."""

from typing import Any

from cases import images, reference

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 24,
    "patch_size": 8,
}


@images("vit", task="base")
def _():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(**{**SIZES, "image_size": (24, 24), "patch_size": (8, 8)}, qkv_bias=False, pooler_output_size=20)
    return reference(ViTModel, config)


@images("vit-classifier", task="image-classification", variant=True)
def _():
    from transformers import ViTConfig, ViTForImageClassification

    return reference(ViTForImageClassification, ViTConfig(**SIZES, num_labels=5, hidden_act="gelu_new", num_channels=2))


@images("vit-masked", task="masked-image-modeling", variant=True)
def _():
    from transformers import ViTConfig, ViTForMaskedImageModeling

    return reference(ViTForMaskedImageModeling, ViTConfig(**SIZES, encoder_stride=8))
