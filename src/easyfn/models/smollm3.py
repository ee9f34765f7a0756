"""SmolLM3 (Hugging Face 2025): Llama without rotary positions in every fourth layer (NoPE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, layer_windows, mlp, norm


@dataclass(frozen=True, kw_only=True)
class SmolLM3Config(LlamaFields):
    """The keys of a SmolLM3 `config.json`. `no_rope_layers` has a 1 for each layer that rotates, a 0 for each that does not."""

    model_type: ClassVar[str] = "smollm3"
    num_key_value_heads: Size | None = 4
    max_position_embeddings: Size = 32768
    rope_parameters: Frozen = rope(2000000.0)
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: int = 4
    layer_types: tuple[str, ...] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 128004


def smollm3(c: SmolLM3Config) -> Decoder:
    """The decoder: pre-norm layers, some of which see what is before them without order."""
    every = c.no_rope_layer_interval
    rotates = c.no_rope_layers or tuple(int((i + 1) % every != 0) for i in range(c.num_hidden_layers))
    slides = c.use_sliding_window and c.sliding_window is not None
    kinds = c.layer_types or ["sliding_attention" if slides and not r else "full_attention" for r in rotates]
    windows = layer_windows(c, kinds, c.sliding_window)
    own = [{"window": w, "rope": "default" if r else None} for w, r in zip(windows, rotates, strict=True)]
    return decoder(c, lambda i: Block(attention(c, **own[i]), mlp(c), norm(c), norm(c)))


decoder_family("SmolLM3", SmolLM3Config, smollm3, tags="score", answers="transformer")
