"""The text tower of SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786), which is SigLIP's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..registry.family import family
from .clip_text_model import TEXT_NAMES
from .siglip_text_model import SiglipTextConfig, siglip_text


@dataclass(frozen=True, kw_only=True)
class Siglip2TextConfig(SiglipTextConfig):
    """The keys of SigLIP 2's `text_config`."""

    model_type: ClassVar[str] = "siglip2_text_model"


family(
    "siglip2_text_model",
    config=Siglip2TextConfig,
    tasks={"base": siglip_text},
    architectures={"Siglip2TextModel": "base"},
    names=TEXT_NAMES,
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="text_model",
)
