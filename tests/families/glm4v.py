"""GLM-4.1V: images of three sizes on learned places of five by five; a video, whose frames have the tokens of images."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import grids

from .qwen2_vl import AXIAL

IDS = {"image_token_id": 7, "video_token_id": 8}
ROPE = {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
TEXT: dict[str, Any] = {
    **SMALL,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "rope_parameters": ROPE,
    "eos_token_id": None,
}
VISION: dict[str, Any] = {
    "rope_parameters": AXIAL,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "image_size": 20,
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 40,
    "attention_bias": True,
}


def _glm4v(**more: Any) -> Any:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return reference(Glm4vForConditionalGeneration, Glm4vConfig(text_config=TEXT, vision_config=VISION, **IDS, **more))


@images("glm4v", task="causal-lm", inputs=grids(videos=None))
def _():
    return _glm4v()


@images("glm4v-video", task="causal-lm", variant=True, inputs=grids(framed=True, videos=7))
def _():
    return _glm4v(tie_word_embeddings=True)
