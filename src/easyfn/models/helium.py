"""Helium 1 (Kyutai 2025): Llama rotated in neighbours, with a higher base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, mlp, norm


@dataclass(frozen=True, kw_only=True)
class HeliumConfig(LlamaFields):
    """The keys of a Helium `config.json`."""

    model_type: ClassVar[str] = "helium"
    num_key_value_heads: Size = 20
    head_dim: Size = 128
    max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-8
    rope_parameters: Frozen = rope(100000.0)
    attention_bias: bool = False
    mlp_bias: bool = False
    pad_token_id: int | None = 3


def helium(c: HeliumConfig) -> Decoder:
    """The decoder: pre-norm layers."""
    return decoder(c, lambda _: Block(attention(c, out_bias=False, interleaved=True), mlp(c), norm(c), norm(c)))


decoder_family("Helium", HeliumConfig, helium, tags="score")
