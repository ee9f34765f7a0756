"""The image tower of SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786), NaFlex: patches of images of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import CommonFields, Size
from ..nn.patch_tower import PatchTower
from ..registry.family import family
from .siglip_vision_model import SIGLIP_NAMES


@dataclass(frozen=True, kw_only=True)
class Siglip2VisionConfig(CommonFields):
    """The keys of SigLIP 2's `vision_config`."""

    model_type: ClassVar[str] = "siglip2_vision_model"
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    num_channels: Size = 3
    num_patches: Size = 256
    patch_size: int | tuple[int, ...] = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    vision_use_head: bool = True


family(
    "siglip2_vision_model",
    config=Siglip2VisionConfig,
    tasks={"base": PatchTower},
    architectures={"Siglip2VisionModel": "base"},
    names=SIGLIP_NAMES,
    prefix="vision_model",
)
