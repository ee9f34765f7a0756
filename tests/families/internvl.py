"""InternVL: squares of patches; a tower with biases, norms of queries and keys and a last norm, and one without."""

from typing import Any

from cases import SMALL, images, reference
from image_prompts import squares

from .vit import SIZES


def _internvl(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {**SIZES, "image_size": [32, 32], "patch_size": [8, 8], **vision}
    config = InternVLConfig(text_config={**SMALL, **text}, vision_config=vision, image_token_id=7, **more)
    return reference(InternVLForConditionalGeneration, config)


@images("internvl", task="causal-lm", inputs=squares(4, 32))
def _():
    return _internvl(
        {"model_type": "qwen2", "tie_word_embeddings": False}, {"attention_bias": True}, tie_word_embeddings=False
    )


@images("internvl-norms", task="causal-lm", variant=True, inputs=squares(4, 32))
def _():
    vision = {"use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False, "use_mask_token": True}
    return _internvl({"model_type": "llama"}, vision, vision_feature_layer=-2)
