"""Qwen3.5 with images and experts."""

from cases import images, reference
from image_prompts import grids

from .qwen2_vl import IDS
from .qwen3_5 import TEXT, TOWER


@images("qwen3_5_moe", task="causal-lm", variant=True, inputs=grids(framed=True))
def _():
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
    text = {**TEXT, **experts, "shared_expert_intermediate_size": 28}
    del text["intermediate_size"]
    config = Qwen3_5MoeConfig(text_config=text, vision_config=TOWER, **IDS)
    return reference(Qwen3_5MoeForConditionalGeneration, config)
