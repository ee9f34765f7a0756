"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama with RMSNorm on the queries and keys of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, head_dim
from ..nn import Block, Decoder, GatedMLP, RMSNorm
from .decoders import attention, decoder, decoder_family, norm, qwen_windows


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaFields):
    """The keys of a Qwen3 `config.json`. `layer_types`, or else `max_window_layers`, says which layers slide."""

    model_type: ClassVar[str] = "qwen3"
    num_key_value_heads: Size | None = 32
    head_dim: Size | None = 128
    max_position_embeddings: Size = 32768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None


def qwen3(c: Qwen3Config, **own: Any) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention with normed queries and keys, gated MLP, all pre-norm."""
    windows, bias = qwen_windows(c), c.attention_bias
    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, qk_norm=RMSNorm(head_dim(c), c.rms_norm_eps), window=windows[i]),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            norm(c),
            norm(c),
        ),
        **own,
    )


decoder_family("Qwen3", Qwen3Config, qwen3, tags="score", answers="transformer")
