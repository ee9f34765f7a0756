"""SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786), NaFlex: SigLIP whose image tower reads patches of any number and shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..config.fields import CommonFields
from ..nn.image_heads import ImageClassifier
from ..nn.patch_tower import PatchTower
from ..nn.towers import TwoTowers
from ..registry.family import family
from .clip import tower_names
from .clip_text_model import TEXT_NAMES
from .siglip2_text_model import Siglip2TextConfig
from .siglip2_vision_model import Siglip2VisionConfig
from .siglip_text_model import siglip_text
from .siglip_vision_model import SIGLIP_NAMES


@dataclass(frozen=True, kw_only=True)
class Siglip2Config(CommonFields):
    """The keys of a SigLIP 2 `config.json`."""

    model_type: ClassVar[str] = "siglip2"
    text_config: Siglip2TextConfig = field(default_factory=Siglip2TextConfig)
    vision_config: Siglip2VisionConfig = field(default_factory=Siglip2VisionConfig)


def siglip2(c: Siglip2Config) -> TwoTowers:
    return TwoTowers(c, siglip_text(c.text_config), PatchTower(c.vision_config), scale=(1,), bias=True)


family(
    "siglip2",
    config=Siglip2Config,
    tasks={
        "contrastive": siglip2,
        "image-classification": lambda c: ImageClassifier(PatchTower(c.vision_config), c, pooling="mean", extra=0),
    },
    architectures={"Siglip2Model": "contrastive", "Siglip2ForImageClassification": "image-classification"},
    names=tower_names(TEXT_NAMES, SIGLIP_NAMES),
    ignore=("initializer_factor",),
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="siglip2",
)
