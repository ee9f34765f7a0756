"""Gemma 4 with images: two of other shapes and a video's frames, patches that are padding, means over squares."""

from cases import SMALL, images, reference
from image_prompts import patches


@images("gemma4-images", task="causal-lm", inputs=patches(4, 2))
def _():
    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 500.0},
    }
    text = {
        **SMALL,
        "head_dim": 16,
        "global_head_dim": 24,
        "num_global_key_value_heads": 3,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 5,
        "final_logit_softcapping": 3.0,
        "use_bidirectional_attention": "vision",
        "rope_parameters": rope,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 10,
        "standardize": True,
    }
    ids = {"image_token_id": 7, "video_token_id": 8, "audio_token_id": 9}
    model = reference(Gemma4ForConditionalGeneration, Gemma4Config(text_config=text, vision_config=vision, **ids))
    with torch.no_grad():
        model.model.vision_tower.std_bias.normal_()
        model.model.vision_tower.std_scale.normal_()
        for i, layer in enumerate(model.model.language_model.layers):
            layer.layer_scalar.fill_(0.7 + 0.2 * i)
    return model
