"""Arcee Foundation Model (Arcee AI 2025): Llama with a plain MLP whose activation is a squared ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import MLP, Block, Decoder
from .decoders import attention, decoder, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class ArceeConfig(LlamaFields):
    """The keys of an AFM `config.json`."""

    model_type: ClassVar[str] = "arcee"
    hidden_act: str = "relu2"
    max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False


def arcee(c: ArceeConfig) -> Decoder:
    """The decoder: pre-norm layers."""
    plain = lambda: MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
    return decoder(c, lambda _: Block(attention(c), plain(), norm(c), norm(c)))


decoder_family("Arcee", ArceeConfig, arcee, tags="score", answers="transformer")
