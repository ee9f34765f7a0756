"""Qwen2.5-VL: windows of the tower smaller than its images, frames apart by seconds, tied embeddings."""

from cases import images, reference
from image_prompts import grids

from .qwen2_vl import IDS, TEXT, VISION


@images("qwen2.5-vl", task="causal-lm", inputs=grids())
def _():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    own = {"hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40}
    vision = {**VISION, **own, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 3}
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, **IDS, tie_word_embeddings=True)
    return reference(Qwen2_5_VLForConditionalGeneration, config)
