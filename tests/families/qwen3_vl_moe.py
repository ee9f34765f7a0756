"""Qwen3-VL with experts: files hold them transposed."""

from cases import images, reference
from image_prompts import grids

from .qwen2_vl import IDS
from .qwen3_vl import TEXT, VISION


@images("qwen3-vl-moe", task="causal-lm", variant=True, inputs=grids(framed=True))
def _():
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": [1]}
    config = Qwen3VLMoeConfig(text_config={**TEXT, **experts}, vision_config=VISION, **IDS)
    return reference(Qwen3VLMoeForConditionalGeneration, config)
