"""Persimmon (Elsen et al. 2023): squared ReLU, normed queries and keys, half of each head rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import CommonFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..nn import MLP, Block, Decoder, LayerNorm
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class PersimmonConfig(CommonFields):
    """The keys of a Persimmon `config.json`."""

    model_type: ClassVar[str] = "persimmon"
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: int
    num_attention_heads: Size
    hidden_act: str = "relu2"
    max_position_embeddings: Size = 16384
    layer_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(partial_rotary_factor=0.5)
    qk_layernorm: bool = True
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = False


def persimmon(c: PersimmonConfig) -> Decoder:
    """The decoder: pre-norm layers, attention from one projection by head, a plain MLP."""
    width = head_dim(c)
    layers = [
        Block(
            full_attention(
                c,
                qkv_bias=True,
                out_bias=True,
                fused="groups",
                qk_norm=LayerNorm(width, c.layer_norm_eps) if c.qk_layernorm else None,
                rope="default",
                dropout=c.attention_dropout,
            ),
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True, dropout=c.hidden_dropout),
            LayerNorm(c.hidden_size, c.layer_norm_eps),
            LayerNorm(c.hidden_size, c.layer_norm_eps),
        )
        for _ in range(c.num_hidden_layers)
    ]
    final, table = LayerNorm(c.hidden_size, c.layer_norm_eps), {"default": c.rope_parameters}
    return Decoder(c, layers, final, head_dim=width, rope=table, partial=True)


NAMES = decoder_names(
    "model",
    {
        "layers.{i}.self_attn.qkv_proj": "layers.{i}.self_attn.query_key_value",
        "layers.{i}.self_attn.o_proj": "layers.{i}.self_attn.dense",
        "layers.{i}.self_attn.q_norm": "layers.{i}.self_attn.q_layernorm",
        "layers.{i}.self_attn.k_norm": "layers.{i}.self_attn.k_layernorm",
        "layers.{i}.mlp.up_proj": "layers.{i}.mlp.dense_h_to_4h",
        "layers.{i}.mlp.down_proj": "layers.{i}.mlp.dense_4h_to_h",
        "norm": "final_layernorm",
    },
)

decoder_family("Persimmon", PersimmonConfig, persimmon, tags="score", names=NAMES)
