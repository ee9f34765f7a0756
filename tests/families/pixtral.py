"""Pixtral's tower alone, on images of one size; `mistral3.py` has those of several."""

from typing import Any

from cases import images, reference

TOWER: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": 20,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 300.0},
}


@images("pixtral", task="base")
def _():
    from transformers import PixtralVisionConfig, PixtralVisionModel

    return reference(PixtralVisionModel, PixtralVisionConfig(**TOWER))
