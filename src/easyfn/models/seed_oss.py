"""Seed-OSS (ByteDance 2025): Llama with biases on queries, keys and values, and dropout on what is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, mlp, norm


@dataclass(frozen=True, kw_only=True)
class SeedOssConfig(LlamaFields):
    """The keys of a Seed-OSS `config.json`."""

    model_type: ClassVar[str] = "seed_oss"
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 524288
    attention_bias: bool = True
    attention_out_bias: bool = False
    attention_dropout: float | int = 0.1
    residual_dropout: float | int = 0.1
    mlp_bias: bool = False
    pad_token_id: int | None = 1


def seed_oss(c: SeedOssConfig) -> Decoder:
    """The decoder: pre-norm layers."""
    return decoder(
        c,
        lambda _: Block(
            attention(c, out_bias=c.attention_out_bias), mlp(c), norm(c), norm(c), dropout=float(c.residual_dropout)
        ),
    )


decoder_family("SeedOss", SeedOssConfig, seed_oss, tags="score", answers="transformer")
