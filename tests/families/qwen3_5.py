"""Qwen3.5 with images: positions of three axes on a quarter of a head, beside states that see no positions."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import grids

from .qwen2_vl import IDS
from .qwen3_vl import VISION

TEXT: dict[str, Any] = {
    **SMALL,
    "head_dim": 24,
    "full_attention_interval": 2,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e3,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 2, 1],
        "mrope_interleaved": True,
    },
    "eos_token_id": None,
}
TOWER: dict[str, Any] = {k: v for k, v in VISION.items() if k != "deepstack_visual_indexes"}


@images("qwen3_5", task="causal-lm", inputs=grids(framed=True))
def _():
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(text_config=TEXT, vision_config=TOWER, **IDS, tie_word_embeddings=True)
    return reference(Qwen3_5ForConditionalGeneration, config)
