"""Gemma 3 with images: several in a row, each seen both ways by itself, in layers with a window and without."""

from cases import IMAGES, SMALL, images, reference
from image_prompts import squares

from .vit import SIZES


@images("gemma3-images", task="causal-lm", inputs=squares(4, 40, images=(2, 1), types="images"))
def _():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = {**SMALL, "head_dim": 16, "sliding_window": 5, "layer_types": kinds, "query_pre_attn_scalar": 20}
    vision = {"model_type": "siglip_vision_model", **SIZES, "image_size": 40, "vision_use_head": False}
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=7, mm_tokens_per_image=4)
    return reference(Gemma3ForConditionalGeneration, config)


@images("gemma3-classifier", task="sequence-classification", variant=True)
def _():
    from transformers import Gemma3ForSequenceClassification

    config = IMAGES["gemma3-images"].make().config
    config.num_labels, config.id2label = 3, {i: f"LABEL_{i}" for i in range(3)}
    return reference(Gemma3ForSequenceClassification, config)
