"""DINOv2: scaled branches, a gated MLP, images of any size."""

from cases import images, reference

from .vit import SIZES

SMALL = {k: v for k, v in SIZES.items() if k != "intermediate_size"}


@images("dinov2", task="base")
def _():
    from transformers import Dinov2Config, Dinov2Model

    return reference(Dinov2Model, Dinov2Config(**SMALL, mlp_ratio=2, layerscale_value=0.3))


@images("dinov2-classifier", task="image-classification", variant=True)
def _():
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(**SMALL, use_swiglu_ffn=True, use_mask_token=False, num_labels=4, qkv_bias=False)
    return reference(Dinov2ForImageClassification, config)
