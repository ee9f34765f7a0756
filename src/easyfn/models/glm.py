"""GLM-4 9B (GLM Team 2024, arXiv 2406.12793): half of each head rotated, in neighbours; a fused gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder, FusedGatedMLP
from .decoders import attention, decoder, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class GlmConfig(LlamaFields):
    """The keys of a GLM-4 `config.json`."""

    model_type: ClassVar[str] = "glm"
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1.5625e-7
    rope_parameters: Frozen = rope(10000.0, partial_rotary_factor=0.5)
    attention_bias: bool = True
    pad_token_id: int | None = 151329


def glm(c: GlmConfig) -> Decoder:
    """The decoder: pre-norm layers, biases on queries, keys and values only."""
    return decoder(
        c,
        lambda _: Block(
            attention(c, out_bias=False, interleaved=True),
            FusedGatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            norm(c),
            norm(c),
        ),
        partial=True,
    )


decoder_family("Glm", GlmConfig, glm, tags="score")
