"""GLM-4.5V: experts behind a dense layer, halves turned against halves."""

from cases import images, reference
from image_prompts import grids

from .glm4v import IDS, TEXT, VISION


@images("glm4v-moe", task="causal-lm", inputs=grids(videos=None))
def _():
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    experts = {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 1.7,
        "moe_intermediate_size": 24,
    }
    vision = {**VISION, "attention_bias": False}
    config = Glm4vMoeConfig(text_config={**TEXT, **experts}, vision_config=vision, **IDS)
    return reference(Glm4vMoeForConditionalGeneration, config)
