"""LFM2-VL: images of three shapes, of which one has a row that fills no block; with and without norm and probe."""

from typing import Any

import numpy as np

from cases import SMALL, images, reference
from image_prompts import shapes

TEXT = {"model_type": "lfm2", **SMALL, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 12}
VISION: dict[str, Any] = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "patch_size": 2,
    "num_patches": 16,
    "vision_use_head": False,
}


def _lfm2_vl(vision: dict[str, Any], **more: Any) -> Any:
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    config = Lfm2VlConfig(
        text_config=TEXT, vision_config={**VISION, **vision}, image_token_id=7, projector_hidden_size=20, **more
    )
    return reference(Lfm2VlForConditionalGeneration, config)


@images("lfm2-vl", task="causal-lm", inputs=shapes(np.array([[2, 6], [5, 2], [4, 4]]), 2, 2))
def _():
    return _lfm2_vl({})


@images("lfm2-vl-untied", task="causal-lm", variant=True, inputs=shapes(np.array([[3, 6], [6, 3], [7, 4]]), 2, 3))
def _():
    more = {"projector_use_layernorm": False, "projector_bias": False, "projector_hidden_act": "gelu_new"}
    return _lfm2_vl({"vision_use_head": True}, downsample_factor=3, tie_word_embeddings=False, **more)
