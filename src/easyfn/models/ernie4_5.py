"""ERNIE 4.5 (Baidu 2025): Llama rotated in neighbours; `use_bias` is for every projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, mlp, norm


@dataclass(frozen=True, kw_only=True)
class Ernie4_5Config(LlamaFields):
    """The keys of an ERNIE 4.5 `config.json`."""

    model_type: ClassVar[str] = "ernie4_5"
    unsaid: ClassVar[tuple[str, ...]] = ("attention_dropout",)
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(500000.0)
    use_bias: bool | None = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0


def ernie4_5(c: Ernie4_5Config) -> Decoder:
    """The decoder: pre-norm layers."""
    own = {"qkv_bias": bool(c.use_bias), "out_bias": bool(c.use_bias), "interleaved": True}
    return decoder(c, lambda _: Block(attention(c, **own), mlp(c, bias=bool(c.use_bias)), norm(c), norm(c)))


decoder_family("Ernie4_5", Ernie4_5Config, ernie4_5, classifies=False)
