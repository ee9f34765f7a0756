"""LLaVA-NeXT: an image flatter than its tiles, one taller, one that fits; newlines."""

import numpy as np

from cases import SMALL, images, reference
from image_prompts import tiles

from .vit import SIZES

PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24]]


@images("llava-next", task="causal-lm", inputs=tiles(np.array([[20, 47], [60, 23], [30, 30]]), PINPOINTS, 24, 3))
def _():
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    text = {"model_type": "mistral", **SMALL, "head_dim": 16}
    config = LlavaNextConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **SIZES},
        image_token_index=7,
        image_grid_pinpoints=PINPOINTS,
    )
    return reference(LlavaNextForConditionalGeneration, config)
