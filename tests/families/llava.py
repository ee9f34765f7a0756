"""LLaVA: a CLIP tower's features among the words of a Llama."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import squares

from .vit import SIZES


def _llava(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=7, **more)
    return reference(LlavaForConditionalGeneration, config)


@images("llava", task="causal-lm", inputs=squares(9, 24))
def _():
    return _llava({"model_type": "llama", **SMALL, "head_dim": 16}, {"model_type": "clip_vision_model", **SIZES})


@images("llava-siglip", task="causal-lm", variant=True, inputs=squares(9, 24))
def _():
    text = {"model_type": "qwen2", **SMALL, "tie_word_embeddings": True}
    vision = {"model_type": "siglip_vision_model", **SIZES, "vision_use_head": False}
    choice = {"vision_feature_layer": [-1, 1], "vision_feature_select_strategy": "full"}
    return _llava(text, vision, **choice, multimodal_projector_bias=False, projector_hidden_act="gelu_new")
