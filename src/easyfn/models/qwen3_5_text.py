"""Qwen3.5, its text model (Qwen team 2026): three gated delta nets to one gated attention, dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.frozen import Frozen
from ..nn import Decoder, GatedMLP
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks
from .hybrids import mixer_is, qwen_hybrid, text_rope


@dataclass(frozen=True)
class Qwen3_5TextConfig:
    """The keys of the text part of a Qwen3.5 `config.json`. Its rotary positions have three axes for images, alike for text."""

    model_type: ClassVar[str] = "qwen3_5_text"
    unsaid: ClassVar[tuple[str, ...]] = ("full_attention_interval",)
    vocab_size: int = 248320
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
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
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return text_rope(data)


def qwen3_5(config: Qwen3_5TextConfig) -> Decoder:
    """The decoder: gated delta nets with four projections each, gated attention, gated MLPs."""
    c = config
    return qwen_hybrid(c, lambda i: GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act), projections="four")


family(
    "qwen3_5_text",
    config=Qwen3_5TextConfig,
    tasks=decoder_tasks(qwen3_5),
    architectures={**decoder_classes("Qwen3_5"), "Qwen3_5TextModel": "base"},
    names=(mixer_is("linear_attn"),),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\.", r"^model\.visual\."),
)
