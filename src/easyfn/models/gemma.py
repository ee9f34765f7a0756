"""Gemma (Gemma Team 2024, arXiv 2403.08295): Llama with wide heads, a GELU gate, scaled embeddings, norms around 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family, mlp


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaFields):
    """The keys of a Gemma `config.json`."""

    model_type: ClassVar[str] = "gemma"
    num_key_value_heads: Size = 16
    head_dim: Size = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: Size = 8192
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_bidirectional_attention", False)
        # The first releases said "gelu", and meant its approximation.
        return {**data, "hidden_act": "gelu_pytorch_tanh"} if data.get("hidden_act") == "gelu" else data


def gemma(c: GemmaConfig) -> Decoder:
    """The decoder: embeddings times the root of their width, then pre-norm layers."""
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
    return decoder(c, lambda _: Block(attention(c), mlp(c), norm(), norm()), norm(), embed_scale=c.hidden_size**0.5)


decoder_family("Gemma", GemmaConfig, gemma, tags="score", ignore=("use_bidirectional_attention", "hidden_activation"))
