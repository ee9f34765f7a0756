"""Nemotron-4 (NVIDIA 2024, arXiv 2402.16819): LayerNorm around 1, a squared ReLU, half of each head rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields, Size, rope
from ..core.frozen import Frozen
from ..nn import MLP, Block, Decoder, LayerNorm
from .decoders import attention, decoder, decoder_family


@dataclass(frozen=True, kw_only=True)
class NemotronConfig(RotaryFields):
    """The keys of a Nemotron `config.json`."""

    model_type: ClassVar[str] = "nemotron"
    hidden_act: str = "relu2"
    max_position_embeddings: Size = 4096
    rope_parameters: Frozen = rope(10000.0, partial_rotary_factor=0.5)
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False


def nemotron(c: NemotronConfig) -> Decoder:
    """The decoder: pre-norm layers with a plain MLP."""
    norm = lambda: LayerNorm(c.hidden_size, c.norm_eps, offset=1.0)
    plain = lambda: MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
    return decoder(c, lambda _: Block(attention(c), plain(), norm(), norm()), norm(), partial=True)


decoder_family("Nemotron", NemotronConfig, nemotron, tags="score", answers="transformer")
