"""Qwen3-VL: deepstack of two layers of the tower, interleaved sections, frames of a video told apart by text."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import grids

from .qwen2_vl import AXIAL, IDS

TEXT: dict[str, Any] = {
    **SMALL,
    "head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e3,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
    "eos_token_id": None,
}
VISION: dict[str, Any] = {
    "rope_parameters": AXIAL,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 40,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
}


@images("qwen3-vl", task="causal-lm", inputs=grids(framed=True))
def _():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(text_config=TEXT, vision_config=VISION, **IDS, tie_word_embeddings=True)
    return reference(Qwen3VLForConditionalGeneration, config)
