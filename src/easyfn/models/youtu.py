"""Youtu-LLM (Tencent 2025, arXiv 2512.24618): DeepSeek-V3's latent attention, and a dense MLP in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder
from .decoders import decoder, decoder_family, mlp, norm
from .mixtures import LatentFields, latent_attention


@dataclass(frozen=True, kw_only=True)
class YoutuConfig(LatentFields, LlamaFields):
    """The keys of a Youtu-LLM `config.json`."""

    model_type: ClassVar[str] = "youtu"
    ignored: ClassVar[tuple[str, ...]] = ("qk_head_dim", "embedding_initializer_range", "mlp_bias")
    num_key_value_heads: Size | None = 16
    max_position_embeddings: Size = 131072
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    rope_interleave: bool | None = True


def youtu(c: YoutuConfig) -> Decoder:
    """The decoder: pre-norm blocks."""
    return decoder(
        c,
        lambda _: Block(latent_attention(c, interleaved=bool(c.rope_interleave)), mlp(c), norm(c), norm(c)),
        head_dim=c.qk_rope_head_dim,
    )


decoder_family("Youtu", YoutuConfig, youtu, classifies=False)
