"""MSN: a ViT without a pooler, whose classifier's files name layers in their own way."""

from cases import images, reference

from .vit import SIZES


@images("vit_msn", task="base")
def _():
    from transformers import ViTMSNConfig, ViTMSNModel

    return reference(ViTMSNModel, ViTMSNConfig(**{**SIZES, "image_size": (24, 40)}, qkv_bias=False))


@images("vit_msn-classifier", task="image-classification", variant=True)
def _():
    from transformers import ViTMSNConfig, ViTMSNForImageClassification

    return reference(ViTMSNForImageClassification, ViTMSNConfig(**SIZES, num_labels=5, hidden_act="gelu_new"))
