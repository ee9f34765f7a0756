"""Llama 3.2 Vision: tiles of two images, layers that read them, tokens that see none."""

from cases import SMALL, images, reference
from image_prompts import crossed


@images("mllama", task="causal-lm", inputs=crossed(3, 16))
def _():
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    text = {**SMALL, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e3}
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "attention_heads": 4,
        "intermediate_size": 40,
        "vision_output_dim": 96,
        "image_size": 16,
        "patch_size": 8,
        "max_num_tiles": 3,
        "intermediate_layers_indices": [0, 2],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [1, 3]],
    }
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=7)
    return reference(MllamaForConditionalGeneration, config)
