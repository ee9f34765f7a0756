"""Ministral 8B (Mistral AI 2024): Mistral with a window, or none, for each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, layer_windows, mlp, norm


@dataclass(frozen=True, kw_only=True)
class MinistralConfig(LlamaFields):
    """The keys of a Ministral `config.json`. Without `layer_types` all layers slide, or none where there is no window."""

    model_type: ClassVar[str] = "ministral"
    num_key_value_heads: Size = 8
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None


def ministral(c: MinistralConfig) -> Decoder:
    """The decoder: pre-norm layers."""
    kind = "full_attention" if c.sliding_window is None else "sliding_attention"
    windows = layer_windows(c, c.layer_types or (kind,) * c.num_hidden_layers, c.sliding_window)
    return decoder(c, lambda i: Block(attention(c, window=windows[i]), mlp(c), norm(c), norm(c)))


decoder_family("Ministral", MinistralConfig, ministral, tags="score", answers="transformer")
