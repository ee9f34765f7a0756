"""Idefics3: two images in one row and one in the other, parts of them padding, positions in buckets."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import masked

from .vit import SIZES

VISION: dict[str, Any] = {**SIZES, "image_size": 32}


@images("idefics3", task="causal-lm", inputs=masked(4, 32, 8))
def _():
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    text = {"model_type": "llama", **SMALL, "head_dim": 16, "eos_token_id": None}
    config = Idefics3Config(text_config=text, vision_config=VISION, image_token_id=7)
    return reference(Idefics3ForConditionalGeneration, config)
