"""I-JEPA (Assran et al. 2023, arXiv 2301.08243): a ViT without a class token, that learned to foresee hidden patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import PatchFields
from ..nn.image_heads import ImageClassifier
from ..nn.vision import ClassTokens, ImageEncoder
from ..registry.family import family
from .vision import LEGACY, MODULES, block_names, head_names
from .vit import vit_block


@dataclass(frozen=True, kw_only=True)
class IJepaConfig(PatchFields):
    """The keys of an I-JEPA `config.json`."""

    model_type: ClassVar[str] = "ijepa"
    qkv_bias: bool = True


def ijepa(c: Any) -> ImageEncoder:
    return ImageEncoder(c, ClassTokens(c, first=False), [vit_block(c) for _ in range(c.num_hidden_layers)])


family(
    "ijepa",
    config=IJepaConfig,
    tasks={
        "base": ijepa,
        "image-classification": lambda c: ImageClassifier(ijepa(c), pooling="mean", extra=0),
    },
    architectures={"IJepaModel": "base", "IJepaForImageClassification": "image-classification"},
    names=lambda model: head_names(model, ImageEncoder, block_names("layers", "encoder.layer", LEGACY), "ijepa"),
    modules=lambda model: head_names(model, ImageEncoder, block_names("layers", "layers", MODULES), "ijepa"),
    ignore=("pooler_output_size", "pooler_act"),  # of a pooler that no file has
    prefix="ijepa",
)
