"""DINOv2 with registers (Darcet et al. 2023, arXiv 2309.16588): tokens without a meaning, for what an encoder wants to note."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..nn.image_heads import ImageClassifier
from ..nn.vision import ImageEncoder
from ..registry.family import family
from .dinov2 import Dinov2Config, dinov2, dinov2_names
from .vision import VIT_BACKBONE


@dataclass(frozen=True, kw_only=True)
class Dinov2WithRegistersConfig(Dinov2Config):
    """The keys of the `config.json` of a DINOv2 with registers."""

    model_type: ClassVar[str] = "dinov2_with_registers"
    unsaid: ClassVar[tuple[str, ...]] = ("use_mask_token",)
    patch_size: int | tuple[int, ...] = 16
    num_register_tokens: int = 4


def _encoder(c: Any) -> ImageEncoder:
    return dinov2(c, registers=c.num_register_tokens)


family(
    "dinov2_with_registers",
    config=Dinov2WithRegistersConfig,
    tasks={
        "base": _encoder,
        "image-classification": lambda c: ImageClassifier(
            _encoder(c), pooling="cls_mean", extra=1 + c.num_register_tokens
        ),
    },
    architectures={
        "Dinov2WithRegistersModel": "base",
        "Dinov2WithRegistersForImageClassification": "image-classification",
    },
    names=dinov2_names("dinov2_with_registers"),
    modules=dinov2_names("dinov2_with_registers", {}),
    ignore=VIT_BACKBONE,
    prefix="dinov2_with_registers",
)
