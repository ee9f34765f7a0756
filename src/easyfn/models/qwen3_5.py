"""Qwen3.5 with images (Qwen team 2026): Qwen3-VL's tower without DeepStack, and a decoder of gated delta nets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..nn.grid_vision import GridImageText
from .grids import GridFields, TurnFields, grid_family, mrope
from .hybrids import mixer_is
from .qwen3_5_text import Qwen3_5TextConfig, qwen3_5
from .qwen3_vl import QWEN3_NAMES, Qwen3VisionFields, qwen3_tower


@dataclass(frozen=True, kw_only=True)
class Qwen3_5ImageTextConfig(TurnFields, Qwen3_5TextConfig):
    """The keys of Qwen3.5's `text_config`, with what its positions of images need."""

    mrope_section: tuple[int, ...] = (11, 11, 10)


@dataclass(frozen=True, kw_only=True)
class Qwen3_5VisionConfig(Qwen3VisionFields):
    """The keys of Qwen3.5's `vision_config`."""

    model_type: ClassVar[str] = "qwen3_5_vision"


@dataclass(frozen=True, kw_only=True)
class Qwen3_5Config(GridFields):
    """The keys of a Qwen3.5 `config.json`."""

    model_type: ClassVar[str] = "qwen3_5"
    text_config: Qwen3_5ImageTextConfig = field(default_factory=Qwen3_5ImageTextConfig)
    vision_config: Qwen3_5VisionConfig = field(default_factory=Qwen3_5VisionConfig)
    image_token_id: int = 248056
    video_token_id: int = 248057


def qwen3_5_images(c: Any) -> GridImageText:
    text = qwen3_5(c.text_config, rope=mrope(c.text_config, mrope_interleaved=True))
    return GridImageText(c, qwen3_tower(c.vision_config), text, framed=True)


NAMES = [mixer_is("linear_attn"), *QWEN3_NAMES]
grid_family("Qwen3_5", Qwen3_5Config, qwen3_5_images, names=NAMES, ignore_tensors=(r"^mtp\.",))
