"""PaliGemma: image and prompt are read both ways; on Gemma, and on Gemma 2 with a window that the prompt is longer than."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import squares

from .vit import SIZES


def _paligemma(text: dict[str, Any], **more: Any) -> Any:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    vision = {"model_type": "siglip_vision_model", **SIZES, "vision_use_head": False}
    text = {**SMALL, "head_dim": 16, **text}
    config = PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=7, projection_dim=48, hidden_size=48, **more
    )
    return reference(PaliGemmaForConditionalGeneration, config)


@images("paligemma", task="causal-lm", inputs=squares(9, 24, types="prefix"))
def _():
    return _paligemma({"model_type": "gemma"})


@images("paligemma2", task="causal-lm", variant=True, inputs=squares(9, 24, types="prefix"))
def _():
    return _paligemma({"model_type": "gemma2", "sliding_window": 5, "query_pre_attn_scalar": 20})
