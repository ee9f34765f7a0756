"""StableLM 2 (Bellagente et al. 2024, arXiv 2402.17834): LayerNorm, a quarter of each head rotated, parallel or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..names.rules import experts
from ..nn import Block, Decoder, HeadNorm, LayerNorm, ParallelBlock
from .decoders import attention, decoder, decoder_family, key_heads, mlp


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(RotaryFields):
    """The keys of a StableLM `config.json`."""

    model_type: ClassVar[str] = "stablelm"
    hidden_act: str = "silu"
    max_position_embeddings: Size = 4096
    layer_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(10000.0, partial_rotary_factor=0.25)
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False
    hidden_dropout: float | int = 0.0
    num_key_value_heads: Size | None = 32


def stablelm(c: StableLmConfig) -> Decoder:
    """The decoder: with `use_parallel_residual` attention and MLP read the same normed input; `qk_layernorm` norms each head
    with a weight of its own."""
    head_norm = lambda heads: HeadNorm(heads, head_dim(c), c.layer_norm_eps)
    norms = (head_norm(c.num_attention_heads), head_norm(key_heads(c))) if c.qk_layernorm else None
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps)

    def block(_: int) -> Block | ParallelBlock:
        parts = attention(c, qkv_bias=c.use_qkv_bias, qk_norm=norms), mlp(c, dropout=float(c.hidden_dropout))
        return ParallelBlock(*parts, norm()) if c.use_parallel_residual else Block(*parts, norm(), norm())

    return decoder(c, block, norm(), partial=True)


NAMES = (
    experts("{rest}.q_norm.weight", "{rest}.q_layernorm.norms.{e}.weight"),
    experts("{rest}.k_norm.weight", "{rest}.k_layernorm.norms.{e}.weight"),
)


decoder_family("StableLm", StableLmConfig, stablelm, tags="score", names=NAMES)
