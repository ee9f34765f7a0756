"""Mistral 3: images of three sizes, their patches in squares; and LLaVA with Pixtral's tower, without squares."""

import numpy as np

from cases import SMALL, images, reference
from image_prompts import sized

from .llava import _llava
from .pixtral import TOWER as PIXTRAL

SIZES = np.array([[16, 24], [8, 16], [32, 8]])
TOWER = {"model_type": "pixtral", **PIXTRAL}


@images("mistral3", task="causal-lm", inputs=sized(SIZES, 8))
def _():
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {"model_type": "mistral", **SMALL, "head_dim": 16, "sliding_window": None, "rms_norm_eps": 1e-3}
    more = {"multimodal_projector_bias": True, "tie_word_embeddings": False}
    config = Mistral3Config(text_config=text, vision_config=TOWER, image_token_index=7, **more)
    return reference(Mistral3ForConditionalGeneration, config)


@images("llava-pixtral", task="causal-lm", variant=True, inputs=sized(SIZES // 2, 4))
def _():
    text = {"model_type": "mistral", **SMALL, "head_dim": 16, "sliding_window": 5}
    return _llava(text, TOWER, vision_feature_layer=-1, vision_feature_select_strategy="full")
