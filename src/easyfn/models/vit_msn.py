"""MSN (Assran et al. 2022, arXiv 2204.07141): a ViT that learned from images with most of their patches left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import PatchFields
from ..names.rules import Rule, rename
from ..nn.image_heads import ImageClassifier
from ..nn.vision import ImageEncoder
from ..registry.family import family
from .vision import LEGACY, MODULES, block_names, head_names
from .vit import vit


@dataclass(frozen=True, kw_only=True)
class ViTMSNConfig(PatchFields):
    """The keys of the `config.json` of an MSN."""

    model_type: ClassVar[str] = "vit_msn"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True


def vit_msn(c: Any) -> ImageEncoder:
    return vit(c, pooler=False)


def _names(model: Any) -> list[Rule]:
    blocks = block_names("layers", "encoder.layer", LEGACY)
    if isinstance(model, ImageEncoder):
        return blocks
    # Files of the classifier say `vit.` of all but the layers.
    return [*(rule._replace(ours=f"model.{rule.ours}") for rule in blocks), rename("model.{rest}", "vit.{rest}")]


family(
    "vit_msn",
    config=ViTMSNConfig,
    tasks={"base": vit_msn, "image-classification": lambda c: ImageClassifier(vit_msn(c))},
    architectures={"ViTMSNModel": "base", "ViTMSNForImageClassification": "image-classification"},
    names=_names,
    modules=lambda model: head_names(model, ImageEncoder, block_names("layers", "layers", MODULES), "vit"),
    aliases={"encoder.layer.{rest}": ("vit.encoder.layer.{rest}",)},
    prefix="vit",
)
