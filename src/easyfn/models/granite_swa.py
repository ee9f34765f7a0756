"""Granite SWA (IBM 2026): Granite with sinks, windows and a rotary base, or no positions, by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..core.frozen import Frozen
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, layer_windows, logits_scale, mlp, norm


@dataclass(frozen=True, kw_only=True)
class GraniteSwaConfig(LlamaFields):
    """The keys of a Granite SWA `config.json`. Without `layer_types` the first of every four layers sees all. A base of 0 in
    `layer_rope_theta` is a layer without positions."""

    model_type: ClassVar[str] = "granite_swa"
    vocab_size: Size = 100352
    hidden_size: Size = 2560
    intermediate_size: Size = 8192
    num_hidden_layers: int = 24
    num_attention_heads: Size = 20
    num_key_value_heads: Size | None = 4
    max_position_embeddings: Size = 8192
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: float | int = 1.0
    logits_scaling: float | int = 1.0
    residual_multiplier: float | int = 1.0
    attention_multiplier: float | int = 1.0
    sliding_window: Size | None = 128
    layer_types: tuple[str, ...] | None = None
    layer_rope_theta: tuple[float | int, ...] | None = None


def granite_swa(c: GraniteSwaConfig) -> Decoder:
    """The decoder: Granite's, and of each layer its window and its rotary table."""
    layers = range(c.num_hidden_layers)
    kinds = c.layer_types or tuple("sliding_attention" if i % 4 else "full_attention" for i in layers)
    windows = layer_windows(c, kinds, c.sliding_window)
    thetas = c.layer_rope_theta or (c.rope_parameters["rope_theta"],) * c.num_hidden_layers
    if len(thetas) != c.num_hidden_layers:
        raise ValueError(f"granite_swa: layer_rope_theta has {len(thetas)} bases of {c.num_hidden_layers} layers")

    def block(i: int) -> Block:
        own = {"window": windows[i], "rope": str(float(thetas[i])) if thetas[i] else None}
        attend = attention(c, scale=float(c.attention_multiplier), sinks=True, **own)
        return Block(attend, mlp(c), norm(c), norm(c), residual=float(c.residual_multiplier))

    tables = {
        str(float(theta)): Frozen({**c.rope_parameters, "rope_theta": theta}) for theta in sorted(set(thetas)) if theta
    }
    return decoder(c, block, rope=tables, embed_scale=float(c.embedding_multiplier), scale_inputs=True)


decoder_family("GraniteSWA", GraniteSwaConfig, granite_swa, classifies=False, head={"scale": logits_scale})
