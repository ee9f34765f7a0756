"""Qwen3.5 with images and a mixture of experts (Qwen team 2026)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..nn.grid_vision import GridImageText
from .grids import TurnFields, grid_family, mrope
from .hybrids import EXPERT_NAMES
from .qwen3_5 import NAMES, Qwen3_5Config, Qwen3_5VisionConfig
from .qwen3_5_moe_text import Qwen3_5MoeTextConfig, qwen3_5_moe
from .qwen3_vl import qwen3_tower


@dataclass(frozen=True, kw_only=True)
class Qwen3_5MoeImageTextConfig(TurnFields, Qwen3_5MoeTextConfig):
    """The keys of its `text_config`, with what its positions of images need."""

    mrope_section: tuple[int, ...] = (11, 11, 10)


@dataclass(frozen=True, kw_only=True)
class Qwen3_5MoeVisionConfig(Qwen3_5VisionConfig):
    """The keys of its `vision_config`."""

    model_type: ClassVar[str] = "qwen3_5_moe_vision"


@dataclass(frozen=True, kw_only=True)
class Qwen3_5MoeConfig(Qwen3_5Config):
    """The keys of its `config.json`."""

    model_type: ClassVar[str] = "qwen3_5_moe"
    text_config: Qwen3_5MoeImageTextConfig = field(default_factory=Qwen3_5MoeImageTextConfig)  # type: ignore[assignment]
    vision_config: Qwen3_5MoeVisionConfig = field(default_factory=Qwen3_5MoeVisionConfig)


def qwen3_5_moe_images(c: Qwen3_5MoeConfig) -> GridImageText:
    text = qwen3_5_moe(c.text_config, rope=mrope(c.text_config, mrope_interleaved=True))
    return GridImageText(c, qwen3_tower(c.vision_config), text, framed=True)


grid_family(
    "Qwen3_5Moe",
    Qwen3_5MoeConfig,
    qwen3_5_moe_images,
    names=[*EXPERT_NAMES, *NAMES],
    ignore_tensors=(r"^mtp\.",),
)
