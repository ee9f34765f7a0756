"""DINOv2 with registers: tokens without positions, which the classifier leaves out."""

from cases import images, reference

from .dinov2 import SMALL


@images("dinov2_with_registers", task="base")
def _():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"mlp_ratio": 2, "layerscale_value": 0.3, "num_register_tokens": 3}
    return reference(Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SMALL, **sizes))


@images("dinov2_with_registers-classifier", task="image-classification", variant=True)
def _():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    config = Dinov2WithRegistersConfig(**SMALL, use_swiglu_ffn=True, num_labels=4, qkv_bias=False)
    return reference(Dinov2WithRegistersForImageClassification, config)
