"""Qwen2 (Yang et al. 2024, arXiv 2407.10671): Llama with biases on queries, keys and values, and windows in some layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder, GatedMLP
from .decoders import attention, decoder, decoder_family, norm, qwen_windows


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaFields):
    """The keys of a Qwen2 `config.json`. `layer_types`, or else `max_window_layers`, says which layers slide."""

    model_type: ClassVar[str] = "qwen2"
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 32768
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None


def qwen2(c: Qwen2Config, **own: Any) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention with qkv biases, gated MLP, all pre-norm."""
    windows = qwen_windows(c)
    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=True, window=windows[i]),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            norm(c),
            norm(c),
        ),
        **own,
    )


decoder_family(
    "Qwen2",
    Qwen2Config,
    qwen2,
    tags="score",
    answers="transformer",
    ignore=("dual_chunk_attention_config",),  # another engine's way past 256k tokens; transformers does not read it
)
