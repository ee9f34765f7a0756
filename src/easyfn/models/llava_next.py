"""LLaVA-NeXT (Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge"): LLaVA on images in tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import without_nulls
from ..config.fields import Size
from ..names.rules import rename
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.packing import AnyResolution
from ..nn.vision import pair
from ..registry.family import family
from .image_text import TWO_HALVES, in_model, two_halves
from .llava import IGNORED, LlavaConfig, llava


@dataclass(frozen=True, kw_only=True)
class LlavaNextConfig(LlavaConfig):
    """The keys of a LLaVA-NeXT `config.json`."""

    model_type: ClassVar[str] = "llava_next"
    image_grid_pinpoints: tuple[tuple[Size, Size], ...] = (
        (336, 672),
        (672, 336),
        (672, 672),
        (1008, 336),
        (336, 1008),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return without_nulls(LlavaConfig.normalize(data), "image_grid_pinpoints")


def llava_next(c: LlavaNextConfig) -> ImageText:
    tile = pair(c.vision_config.image_size)[0]
    side = tile // pair(c.vision_config.patch_size)[0]
    return llava(c, pack=AnyResolution(c.hidden_size, c.image_grid_pinpoints, tile=tile, side=side))


family(
    "llava_next",
    config=LlavaNextConfig,
    tasks={"causal-lm": lambda c: CausalLM(llava_next(c), tied=c.tie_word_embeddings), "base": llava_next},
    architectures={"LlavaNextForConditionalGeneration": "causal-lm", "LlavaNextModel": "base"},
    names=two_halves([rename("model.pack.image_newline", "image_newline")]),
    modules=in_model([rename("model.pack.image_newline", "model.image_newline")]),
    ignore=(*IGNORED, "use_image_newline_parameter"),
    ignore_tensors=(r"embeddings\.position_ids$", r"rotary_emb\.inv_freq$"),
    aliases={**TWO_HALVES, "image_newline": ("model.image_newline",)},
)
