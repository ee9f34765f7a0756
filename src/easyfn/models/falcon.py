"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867) in its three layouts: 7B, 40B and 180B, and RW with ALiBi."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size, alias, head_dim, rope
from ..core.frozen import Frozen
from ..nn import MLP, Alibi, Attention, Block, Decoder, LayerNorm, ParallelBlock
from .decoders import decoder_family, decoder_names


@dataclass(frozen=True, kw_only=True)
class FalconConfig(CommonFields):
    """The keys of a Falcon `config.json`.

    7B is `multi_query` and `parallel_attn`, 40B has `new_decoder_architecture` (key heads in groups, two norms side by
    side), RW has `alibi` and neither.
    """

    model_type: ClassVar[str] = "falcon"
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: int
    num_attention_heads: Size
    num_kv_heads: Size | None = None
    num_ln_in_parallel_attn: Size | None = None
    ffn_hidden_size: Size | None = None
    activation: str | None = "gelu"
    max_position_embeddings: Size = 2048
    layer_norm_epsilon: float | None = 1e-5
    rope_parameters: Frozen = rope()
    alibi: bool | None = False
    new_decoder_architecture: bool | None = False
    multi_query: bool | None = True
    parallel_attn: bool | None = True
    bias: bool | None = False
    hidden_dropout: float | int | None = 0.0
    attention_dropout: float | int | None = 0.0
    tie_word_embeddings: bool = True
    n_embed = alias("hidden_size")


def falcon(c: FalconConfig) -> Decoder:
    """The decoder: attention from one projection by key head, an MLP beside or behind it."""
    bias, width = bool(c.bias), head_dim(c)
    kv_heads = c.num_kv_heads or c.num_attention_heads
    if not c.new_decoder_architecture:
        kv_heads = 1 if c.multi_query else c.num_attention_heads
    parallel = c.new_decoder_architecture or c.parallel_attn
    two = c.new_decoder_architecture and (c.num_ln_in_parallel_attn or 2) == 2

    def norm() -> LayerNorm:
        return LayerNorm(c.hidden_size, c.layer_norm_epsilon or 1e-5)

    layers = [
        (ParallelBlock if parallel else Block)(
            Attention(
                c.hidden_size,
                c.num_attention_heads,
                kv_heads,
                width,
                qkv_bias=bias,
                out_bias=bias,
                fused="groups",
                rope=None if c.alibi else "default",
                dropout=(c.attention_dropout or 0.0) if c.alibi else 0.0,  # as the reference, which has it there only
            ),
            MLP(c.hidden_size, c.ffn_hidden_size or 4 * c.hidden_size, c.activation or "gelu", bias=bias),
            norm(),
            norm() if two or not parallel else None,
            dropout=c.hidden_dropout or 0.0,
        )
        for _ in range(c.num_hidden_layers)
    ]
    alibi = Alibi(c.num_attention_heads, scale=width**-0.5, rounded=True) if c.alibi else None
    rope = {} if c.alibi else {"default": c.rope_parameters}
    return Decoder(c, layers, norm(), head_dim=width, rope=rope, alibi=alibi, padding=False)


def names(model: Any) -> Any:
    """Two norms side by side have names of their own."""
    c = model.config
    two = c.new_decoder_architecture and (c.num_ln_in_parallel_attn or 2) == 2
    first, second = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
    table = {
        "embed_tokens": "word_embeddings",
        "layers.{i}.self_attn.qkv_proj": "h.{i}.self_attention.query_key_value",
        "layers.{i}.self_attn.o_proj": "h.{i}.self_attention.dense",
        "layers.{i}.input_layernorm": f"h.{{i}}.{first}",
        "layers.{i}.post_attention_layernorm": f"h.{{i}}.{second}",
        "layers.{i}.mlp.up_proj": "h.{i}.mlp.dense_h_to_4h",
        "layers.{i}.mlp.down_proj": "h.{i}.mlp.dense_4h_to_h",
        "norm": "ln_f",
    }
    return decoder_names("transformer", table)(model)


decoder_family(
    "Falcon",
    FalconConfig,
    falcon,
    tags="classifier",
    answers="transformer",
    names=names,
    prefix="transformer",
    ignore=("apply_residual_connection_post_layernorm",),  # of its first code; transformers does not read it
)
