"""SmolVLM: Idefics3's form under its own name."""

from cases import SMALL, images, reference
from image_prompts import masked

from .idefics3 import VISION


@images("smolvlm", task="causal-lm", variant=True, inputs=masked(4, 32, 8))
def _():
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = {"model_type": "llama", **SMALL, "tie_word_embeddings": True}
    config = SmolVLMConfig(text_config=text, vision_config=VISION, image_token_id=7, tie_word_embeddings=True)
    return reference(SmolVLMForConditionalGeneration, config)
