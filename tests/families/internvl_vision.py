"""InternVL's image tower: layer scale, with and without a last norm."""

from cases import images, reference

from .vit import SIZES


@images("internvl-vision", task="base", variant=True)
def _():
    from transformers import InternVLVisionConfig, InternVLVisionModel

    config = InternVLVisionConfig(**{**SIZES, "image_size": [24, 24], "patch_size": [8, 8]}, use_mean_pooling=False)
    return reference(InternVLVisionModel, config)
