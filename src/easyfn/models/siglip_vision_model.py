"""The image tower of SigLIP (Zhai et al. 2023, arXiv 2303.15343): no class token; a learned probe asks all patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import CommonFields, Size
from ..names.rules import rename
from ..nn.towers import ImageTower, ProbeHead
from ..registry.family import family
from .clip_vision_model import VISION_NAMES


@dataclass(frozen=True, kw_only=True)
class SiglipVisionConfig(CommonFields):
    """The keys of SigLIP's `vision_config`."""

    model_type: ClassVar[str] = "siglip_vision_model"
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    vision_use_head: bool = True


SIGLIP_NAMES = [
    *VISION_NAMES,
    rename("head.mlp.up_proj.{rest}", "head.mlp.fc1.{rest}"),
    rename("head.mlp.down_proj.{rest}", "head.mlp.fc2.{rest}"),
]


def siglip_vision(c: SiglipVisionConfig) -> ImageTower:
    return ImageTower(c, class_token=False, head=ProbeHead(c) if c.vision_use_head else None)


family(
    "siglip_vision_model",
    config=SiglipVisionConfig,
    tasks={"base": siglip_vision},
    architectures={"SiglipVisionModel": "base"},
    names=SIGLIP_NAMES,
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="vision_model",
)
