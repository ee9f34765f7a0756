"""SigLIP: two towers, the image's asked by a probe."""

from typing import Any

from cases import images, reference

from .clip import TEXT
from .vit import SIZES


def _siglip(head: str, **more: Any) -> Any:
    import transformers.models.siglip.modeling_siglip as siglip
    from transformers import SiglipConfig

    whole = SiglipConfig(
        text_config={**TEXT, "projection_size": 32}, vision_config=SIZES | more.pop("vision", {}), **more
    )
    part = {"Text": whole.text_config, "Visi": whole.vision_config}.get(head[6:10], whole)
    return reference(getattr(siglip, head), part)


@images("siglip", task="contrastive")
def _():
    return _siglip("SiglipModel")


@images("siglip-classifier", task="image-classification", variant=True)
def _():
    return _siglip("SiglipForImageClassification", num_labels=3, vision={"vision_use_head": False})


@images("siglip-text", task="base", variant=True)
def _():
    return _siglip("SiglipTextModel")


@images("siglip-vision", task="base", variant=True)
def _():
    return _siglip("SiglipVisionModel")
