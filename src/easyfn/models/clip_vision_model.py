"""The image tower of CLIP (Radford et al. 2021, arXiv 2103.00020): a ViT with a norm before its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..names.rules import rename
from ..nn.towers import ImageTower, Projected
from ..registry.family import family
from .vision import TOWER, block_names, under


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(CommonFields):
    """The keys of CLIP's `vision_config`."""

    model_type: ClassVar[str] = "clip_vision_model"
    ignored: ClassVar = ("initializer_factor",)
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    projection_dim: Size = 512
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0


VISION_NAMES = block_names("layers", "encoder.layers", TOWER)


def clip_vision(c: CLIPVisionConfig) -> ImageTower:
    return ImageTower(c, class_token=True)


def _names(model: Any) -> list[Any]:
    if isinstance(model, ImageTower):
        return VISION_NAMES
    return [*under(VISION_NAMES, "model", "vision_model"), rename("projection.{rest}", "visual_projection.{rest}")]


family(
    "clip_vision_model",
    config=CLIPVisionConfig,
    tasks={"base": clip_vision, "image-projection": lambda c: Projected(clip_vision(c), "image_embeds")},
    architectures={"CLIPVisionModel": "base", "CLIPVisionModelWithProjection": "image-projection"},
    names=_names,
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="vision_model",
)
