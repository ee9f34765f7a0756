"""Command R (Cohere 2024): parallel blocks with one LayerNorm without bias, interleaved rotation, scaled logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..nn import Decoder, HeadNorm, LayerNorm, ParallelBlock
from .decoders import attention, decoder, decoder_family, key_heads, mlp


@dataclass(frozen=True, kw_only=True)
class CohereConfig(RotaryFields):
    """The keys of a Command R `config.json`."""

    model_type: ClassVar[str] = "cohere"
    hidden_act: str = "silu"
    max_position_embeddings: Size = 8192
    layer_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)
    logit_scale: float | int | None = 0.0625
    attention_bias: bool = False
    use_qk_norm: bool | None = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0


def cohere(c: CohereConfig) -> Decoder:
    """The decoder: attention and MLP read the same normed input; Command R+ norms each head with a weight of its own."""
    head_norm = lambda heads: HeadNorm(heads, head_dim(c), c.layer_norm_eps)
    norms = (head_norm(c.num_attention_heads), head_norm(key_heads(c))) if c.use_qk_norm else None
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps, bias=False)
    return decoder(c, lambda _: ParallelBlock(attention(c, interleaved=True, qk_norm=norms), mlp(c), norm()), norm())


decoder_family("Cohere", CohereConfig, cohere, head={"scale": lambda c: c.logit_scale}, classifies=False)
