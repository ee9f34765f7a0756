"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder, GatedMLP
from .decoders import attention, decoder, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaFields):
    """The keys of a Mistral `config.json`. `sliding_window=None`: full attention, as from version 0.2 on."""

    model_type: ClassVar[str] = "mistral"
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = 4096


def mistral(c: MistralConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention within a window, gated MLP, all pre-norm."""
    return decoder(
        c,
        lambda _: Block(
            attention(c, window=c.sliding_window),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            norm(c),
            norm(c),
        ),
    )


decoder_family("Mistral", MistralConfig, mistral, tags="score", answers="model")
