"""Jais 2 (Inception, MBZUAI 2025): Llama with LayerNorm, biases, and a plain MLP whose activation is a squared ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields, Size
from ..nn import MLP, Block, Decoder, LayerNorm
from .decoders import attention, decoder, decoder_family


@dataclass(frozen=True, kw_only=True)
class Jais2Config(RotaryFields):
    """The keys of a Jais 2 `config.json`."""

    model_type: ClassVar[str] = "jais2"
    hidden_act: str = "relu2"
    max_position_embeddings: Size = 8192
    layer_norm_eps: float = 1e-5
    attention_bias: bool = True
    mlp_bias: bool = True


def jais2(c: Jais2Config) -> Decoder:
    """The decoder: pre-norm layers."""
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps)
    mlp = lambda: MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
    return decoder(c, lambda _: Block(attention(c), mlp(), norm(), norm()), norm())


decoder_family("Jais2", Jais2Config, jais2, classifies=False)
