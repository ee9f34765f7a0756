"""Qwen2-VL: images of two sizes and a video, positions of three axes."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import grids

IDS = {"image_token_id": 7, "video_token_id": 8, "vision_start_token_id": 5, "vision_end_token_id": 6}
TEXT: dict[str, Any] = {
    **SMALL,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "mrope_section": [1, 1, 2]},
    "eos_token_id": None,
}
AXIAL = {"rope_type": "axial", "rope_theta": 100.0}
VISION: dict[str, Any] = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "rope_parameters": AXIAL,
}


@images("qwen2-vl", task="causal-lm", inputs=grids())
def _():
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {**VISION, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    return reference(Qwen2VLForConditionalGeneration, Qwen2VLConfig(text_config=TEXT, vision_config=vision, **IDS))
