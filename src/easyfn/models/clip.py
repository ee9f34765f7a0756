"""CLIP (Radford et al. 2021, arXiv 2103.00020): a text and an image tower, compared by the angle of their features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..nn.image_heads import ImageClassifier
from ..nn.towers import TwoTowers
from ..registry.family import family
from .clip_text_model import TEXT_NAMES, CLIPTextConfig, clip_text
from .clip_vision_model import VISION_NAMES, CLIPVisionConfig, clip_vision
from .vision import under


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(CommonFields):
    """The keys of a CLIP `config.json`."""

    model_type: ClassVar[str] = "clip"
    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: CLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: Size = 512
    logit_scale_init_value: float | int = 2.6592

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return towers_of(data)


def towers_of(data: dict[str, Any]) -> dict[str, Any]:
    """Old files say a tower's config twice: what `text_config_dict` and `vision_config_dict` say counts."""
    for name in ("text_config", "vision_config"):
        given = data.pop(f"{name}_dict", None)
        if given is not None:
            data[name] = {**(data.get(name) or {}), **given}
    return data


def clip(c: CLIPConfig) -> TwoTowers:
    return TwoTowers(c, clip_text(c.text_config), clip_vision(c.vision_config), size=c.projection_dim)


def classifier(c: Any, vision: Any) -> ImageClassifier:
    """A classifier of images on the image tower, by the mean of its patches."""
    return ImageClassifier(vision, c, pooling="mean", extra=0 if vision.embeddings.class_embedding is None else 1)


def tower_names(text: list[Any], vision: list[Any]) -> Any:
    """The rules of two towers, and of a classifier on the second."""

    def names(model: Any) -> list[Any]:
        if isinstance(model, TwoTowers):
            return [*under(text, "text_model", "text_model"), *under(vision, "vision_model", "vision_model")]
        return under(vision, "model", "vision_model")

    return names


family(
    "clip",
    config=CLIPConfig,
    tasks={"contrastive": clip, "image-classification": lambda c: classifier(c, clip_vision(c.vision_config))},
    architectures={"CLIPModel": "contrastive", "CLIPForImageClassification": "image-classification"},
    names=tower_names(TEXT_NAMES, VISION_NAMES),
    ignore=("initializer_factor",),
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="clip",
)
