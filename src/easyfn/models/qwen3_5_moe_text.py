"""Qwen3.5 with a mixture of experts, its text model (Qwen team 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.frozen import Frozen
from ..nn import Decoder
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks
from .hybrids import EXPERT_NAMES, mixer_is, qwen_hybrid, shared_expert_moe, text_rope


@dataclass(frozen=True)
class Qwen3_5MoeTextConfig:
    """The keys of the text part of a Qwen3.5-MoE `config.json`."""

    model_type: ClassVar[str] = "qwen3_5_moe_text"
    unsaid: ClassVar[tuple[str, ...]] = ("full_attention_interval",)
    vocab_size: int = 248320
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25)
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    full_attention_interval: int = 4
    layer_types: tuple[str, ...] | None = None
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts: int = 256
    num_experts_per_tok: int = 8
    router_aux_loss_coef: float = 0.001
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return text_rope(data)


def qwen3_5_moe(config: Qwen3_5MoeTextConfig) -> Decoder:
    """The decoder: as Qwen3.5, with experts beside a shared one in every layer."""
    return qwen_hybrid(config, lambda i: shared_expert_moe(config), projections="four")


family(
    "qwen3_5_moe_text",
    config=Qwen3_5MoeTextConfig,
    tasks=decoder_tasks(qwen3_5_moe),
    architectures={**decoder_classes("Qwen3_5Moe"), "Qwen3_5MoeTextModel": "base"},
    names=(mixer_is("linear_attn"), *EXPERT_NAMES),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\.", r"^model\.visual\."),
)
