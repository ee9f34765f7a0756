"""LLaVA-OneVision: two images in a row, and one that is resampled beside a video; each alone, in tiles."""

from typing import Any

import numpy as np

from cases import SMALL, images, reference
from image_prompts import tiles

from .vit import SIZES

PINPOINTS = [[24, 24], [24, 48], [48, 24], [48, 48], [72, 24]]
SHAPES = np.array([[20, 47], [30, 30], [60, 23]])


def _onevision(**more: Any) -> Any:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **SMALL},
        image_token_index=7,
        video_token_index=8,
        image_grid_pinpoints=PINPOINTS,
        **more,
    )
    return reference(LlavaOnevisionForConditionalGeneration, config)


@images("llava-onevision", task="causal-lm", inputs=tiles(SHAPES, PINPOINTS, 24, 3, most=2, frames=2))
def _():
    vision = {"model_type": "siglip_vision_model", **SIZES, "vision_use_head": False}
    return _onevision(vision_config=vision, vision_aspect_ratio="anyres_max_2")


@images("llava-onevision-clip", task="causal-lm", variant=True, inputs=tiles(SHAPES, PINPOINTS, 24, 3))
def _():
    vision = {"model_type": "clip_vision_model", **SIZES}
    choice = {"vision_feature_layer": [-2, 1], "vision_feature_select_strategy": "default"}
    return _onevision(vision_config=vision, **choice, tie_word_embeddings=True)
