"""LLaVA-OneVision (Li et al. 2024, arXiv 2408.03326): LLaVA on tiles, on several images in a row, and on videos."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import without_nulls
from ..config.fields import Integer, Size, alias
from ..names.rules import rename
from ..nn import CausalLM
from ..nn.image_text import ImageText
from ..nn.packing import AnyResolution, Frames
from ..nn.vision import pair
from ..registry.family import family
from .image_text import TWO_HALVES, in_model, sub_config, two_halves
from .internvl import QWEN2
from .llava import IGNORED, LlavaConfig, llava, tied

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}

_SIDES = range(384, 2305, 384)  # of a picture, in pixels


@dataclass(frozen=True, kw_only=True)
class LlavaOnevisionConfig(LlavaConfig):
    """The keys of a LLaVA-OneVision `config.json`. `vision_aspect_ratio` says of how many tiles at most the patches of an image
    are kept, `"anyres_max_9"`: a larger one is resampled."""

    model_type: ClassVar[str] = "llava_onevision"
    text_config: sub_config("qwen2", **QWEN2)  # type: ignore[valid-type]
    vision_config: sub_config("siglip_vision_model")  # type: ignore[valid-type]
    image_token_index: int = 151646
    video_token_index: int = 151647
    vision_feature_select_strategy: str = "full"
    vision_feature_layer: Integer | tuple[Integer, ...] = -1
    image_grid_pinpoints: tuple[tuple[Size, Size], ...] = tuple(itertools.product(_SIDES, _SIDES))
    vision_aspect_ratio: str = "anyres_max_9"

    video_token_id = alias("video_token_index")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        vision = data.get("vision_config") or SIGLIP
        data = LlavaConfig.normalize({**data, "vision_config": vision})
        return without_nulls(data, "image_grid_pinpoints")


def llava_onevision(c: LlavaOnevisionConfig) -> ImageText:
    most = c.vision_aspect_ratio.removeprefix("anyres_max_")
    if not most.isdecimal() or int(most) < 1:
        raise ValueError(
            f"llava_onevision: vision_aspect_ratio={c.vision_aspect_ratio!r} is to be 'anyres_max_' and a number of tiles"
        )
    tile = pair(c.vision_config.image_size)[0]
    side = tile // pair(c.vision_config.patch_size)[0]
    return llava(
        c,
        pack=AnyResolution(c.hidden_size, c.image_grid_pinpoints, tile=tile, side=side, most=int(most)),
        frames=Frames(c.video_token_index, side),
    )


family(
    "llava_onevision",
    config=LlavaOnevisionConfig,
    tasks={"causal-lm": lambda c: CausalLM(llava_onevision(c), tied=tied(c)), "base": llava_onevision},
    architectures={"LlavaOnevisionForConditionalGeneration": "causal-lm", "LlavaOnevisionModel": "base"},
    names=two_halves([rename("model.pack.image_newline", "image_newline")]),
    modules=in_model([rename("model.pack.image_newline", "model.image_newline")]),
    ignore=(*IGNORED, "use_image_newline_parameter"),
    ignore_tensors=(r"embeddings\.position_ids$", r"rotary_emb\.inv_freq$"),
    aliases={**TWO_HALVES, "image_newline": ("model.image_newline",)},
)
