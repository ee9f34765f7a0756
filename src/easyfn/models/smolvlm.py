"""SmolVLM (Marafioti et al. 2025, arXiv 2504.05299): Idefics3 in small, for images and the frames of videos."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..nn.packing import RealImages
from .idefics3 import Idefics3Config, Idefics3VisionConfig, idefics3, idefics_family


@dataclass(frozen=True, kw_only=True)
class SmolVLMVisionConfig(Idefics3VisionConfig):
    """The keys of SmolVLM's `vision_config`."""

    model_type: ClassVar[str] = "smolvlm_vision"


@dataclass(frozen=True, kw_only=True)
class SmolVLMConfig(Idefics3Config):
    """The keys of a SmolVLM `config.json`."""

    model_type: ClassVar[str] = "smolvlm"
    vision_config: SmolVLMVisionConfig = field(default_factory=SmolVLMVisionConfig)


idefics_family("SmolVLM", SmolVLMConfig, lambda c: idefics3(c, RealImages(one_stays=True)))
