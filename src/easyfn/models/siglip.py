"""SigLIP (Zhai et al. 2023, arXiv 2303.15343): two towers trained pair by pair, with a sigmoid instead of a softmax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import CommonFields
from ..nn.towers import TwoTowers
from ..registry.family import family
from .clip import classifier, tower_names, towers_of
from .clip_text_model import TEXT_NAMES
from .siglip_text_model import SiglipTextConfig, siglip_text
from .siglip_vision_model import SIGLIP_NAMES, SiglipVisionConfig, siglip_vision


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(CommonFields):
    """The keys of a SigLIP `config.json`."""

    model_type: ClassVar[str] = "siglip"
    text_config: SiglipTextConfig = field(default_factory=SiglipTextConfig)
    vision_config: SiglipVisionConfig = field(default_factory=SiglipVisionConfig)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return towers_of(data)


def siglip(c: SiglipConfig) -> TwoTowers:
    return TwoTowers(c, siglip_text(c.text_config), siglip_vision(c.vision_config), scale=(1,), bias=True)


family(
    "siglip",
    config=SiglipConfig,
    tasks={"contrastive": siglip, "image-classification": lambda c: classifier(c, siglip_vision(c.vision_config))},
    architectures={"SiglipModel": "contrastive", "SiglipForImageClassification": "image-classification"},
    names=tower_names(TEXT_NAMES, SIGLIP_NAMES),
    ignore=("initializer_factor",),
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="siglip",
)
