"""Llama 4 with images: one tile in a row and two in the other, chunks shorter than an image."""

from cases import images, reference
from image_prompts import squares

from .llama4_text import SIZES

VISION = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    "projector_input_dim": 20,
    "projector_output_dim": 20,
    "vision_output_dim": 20,
}


@images("llama4", task="causal-lm", inputs=squares(9, 24, images=(1, 2)))
def _():
    from transformers import Llama4Config, Llama4ForConditionalGeneration
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    # transformers 5.24 asks what its text model answers for `image_outputs`, which that has not: every call would raise.
    if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
        MoeCausalLMOutputWithPast.image_outputs = None

    more = {"attention_chunk_size": 7, "no_rope_layer_interval": 3, "moe_layers": [0, 2], "num_experts_per_tok": 2}
    config = Llama4Config(text_config={**SIZES, **more}, vision_config=VISION, image_token_index=7)
    return reference(Llama4ForConditionalGeneration, config)


@images("llama4-tower", task="base", variant=True)
def _():
    from transformers import Llama4VisionConfig, Llama4VisionModel

    return reference(Llama4VisionModel, Llama4VisionConfig(**{**VISION, "image_size": 26, "num_channels": 2}))
