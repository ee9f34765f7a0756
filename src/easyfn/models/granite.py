"""Granite 3 (IBM 2024): Llama with multipliers on embeddings, scores, residuals and logits (muP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, logits_scale, mlp, norm


@dataclass(frozen=True, kw_only=True)
class GraniteConfig(LlamaFields):
    """The keys of a Granite `config.json`."""

    model_type: ClassVar[str] = "granite"
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float | int = 1.0
    logits_scaling: float | int = 1.0
    residual_multiplier: float | int = 1.0
    attention_multiplier: float | int = 1.0


def granite(c: GraniteConfig) -> Decoder:
    """The decoder: pre-norm layers whose results are multiplied before they are added."""
    scale, residual = float(c.attention_multiplier), float(c.residual_multiplier)
    return decoder(
        c,
        lambda _: Block(attention(c, scale=scale), mlp(c), norm(c), norm(c), residual=residual),
        embed_scale=float(c.embedding_multiplier),
        scale_inputs=True,
    )


decoder_family("Granite", GraniteConfig, granite, head={"scale": logits_scale}, classifies=False)
