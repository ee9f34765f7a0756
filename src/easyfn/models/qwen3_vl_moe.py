"""Qwen3-VL with experts (Bai et al. 2025, arXiv 2511.21631): Qwen3-VL's tower, and the decoder of Qwen3-MoE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..names.rules import turned
from ..nn.grid_vision import GridImageText
from .grids import GridFields, TurnFields, grid_family, mrope, turns_apart
from .qwen3_moe import Qwen3MoeConfig, qwen3_moe
from .qwen3_vl import QWEN3_NAMES, Qwen3VLVisionConfig, qwen3_tower


@dataclass(frozen=True, kw_only=True)
class Qwen3VLMoeTextConfig(TurnFields, Qwen3MoeConfig):
    """The keys of its `text_config`. The weights of the chosen experts always add up to 1."""

    model_type: ClassVar[str] = "qwen3_vl_moe_text"
    unsaid: ClassVar[tuple[str, ...]] = ("use_sliding_window", "norm_topk_prob")
    vocab_size: Size = 151936
    hidden_size: Size = 2048
    intermediate_size: Size = 5632
    num_hidden_layers: int = 24
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 16
    max_position_embeddings: Size = 128000
    rope_parameters: Frozen = rope(500000.0)
    moe_intermediate_size: Size = 1408
    num_local_experts: int = 60
    num_experts_per_tok: Size = 4
    norm_topk_prob: bool = True
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "norm_topk_prob", True)
        return turns_apart(data)


@dataclass(frozen=True, kw_only=True)
class Qwen3VLMoeVisionConfig(Qwen3VLVisionConfig):
    """The keys of its `vision_config`."""

    model_type: ClassVar[str] = "qwen3_vl_moe_vision"


@dataclass(frozen=True, kw_only=True)
class Qwen3VLMoeConfig(GridFields):
    """The keys of its `config.json`."""

    model_type: ClassVar[str] = "qwen3_vl_moe"
    text_config: Qwen3VLMoeTextConfig = field(default_factory=Qwen3VLMoeTextConfig)
    vision_config: Qwen3VLMoeVisionConfig = field(default_factory=Qwen3VLMoeVisionConfig)


def qwen3_vl_moe(c: Qwen3VLMoeConfig) -> GridImageText:
    text = qwen3_moe(c.text_config, rope=mrope(c.text_config, mrope_interleaved=True))
    return GridImageText(c, qwen3_tower(c.vision_config), text, framed=True)


EXPERTS = [turned(f"model.language_model.layers.{{i}}.mlp.experts.{part}") for part in ("gate_up_proj", "down_proj")]

grid_family("Qwen3VLMoe", Qwen3VLMoeConfig, qwen3_vl_moe, names=[*EXPERTS, *QWEN3_NAMES])
