"""GLM-OCR: heads of the text apart from its width, no learned places."""

from cases import images, reference
from image_prompts import grids

from .glm4v import IDS, ROPE, TEXT, VISION


@images("glm-ocr", task="causal-lm", inputs=grids(videos=None))
def _():
    from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration

    text = {**TEXT, "head_dim": 24, "rope_parameters": {**ROPE, "mrope_section": [3, 2, 1]}}
    config = GlmOcrConfig(text_config=text, vision_config=VISION, **IDS)
    return reference(GlmOcrForConditionalGeneration, config)
