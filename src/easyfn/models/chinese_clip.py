"""Chinese CLIP (Yang et al. 2022, arXiv 2211.01335): CLIP whose text tower is a BERT, read at its first token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..nn import TextEncoder
from ..nn.towers import ImageTower, TwoTowers
from ..registry.family import family
from .clip import tower_names, towers_of
from .clip_vision_model import VISION_NAMES, CLIPVisionConfig
from .encoders import BertFields


@dataclass(frozen=True, kw_only=True)
class ChineseCLIPTextConfig(BertFields):
    """The keys of Chinese CLIP's `text_config`: BERT's."""

    model_type: ClassVar[str] = "chinese_clip_text_model"
    ignored: ClassVar = ("initializer_factor",)


@dataclass(frozen=True, kw_only=True)
class ChineseCLIPVisionConfig(CLIPVisionConfig):
    """The keys of Chinese CLIP's `vision_config`: CLIP's."""

    model_type: ClassVar[str] = "chinese_clip_vision_model"


@dataclass(frozen=True, kw_only=True)
class ChineseCLIPConfig(CommonFields):
    """The keys of a Chinese CLIP `config.json`."""

    model_type: ClassVar[str] = "chinese_clip"
    text_config: ChineseCLIPTextConfig = field(default_factory=ChineseCLIPTextConfig)
    vision_config: ChineseCLIPVisionConfig = field(default_factory=ChineseCLIPVisionConfig)
    projection_dim: Size = 512
    logit_scale_init_value: float | int = 2.6592

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return towers_of(data)


def chinese_clip(c: ChineseCLIPConfig) -> TwoTowers:
    text, vision = TextEncoder(c.text_config, pooler=False), ImageTower(c.vision_config, class_token=True)
    return TwoTowers(c, text, vision, size=c.projection_dim)


family(
    "chinese_clip",
    config=ChineseCLIPConfig,
    tasks={"contrastive": chinese_clip},
    architectures={"ChineseCLIPModel": "contrastive"},
    names=tower_names([], VISION_NAMES),
    ignore=("initializer_factor",),
    ignore_tensors=(r"embeddings\.(position|token_type)_ids$",),
    prefix="chinese_clip",
)
