"""CodeGen (Nijkamp et al. 2022, arXiv 2203.13474): GPT-J whose projections lie as four devices trained them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.fields import GPTFields, Size, head_dim
from ..nn import (
    KV,
    MLP,
    Context,
    Decoder,
    LayerNorm,
    Linear,
    ParallelBlock,
    Ring,
    empty_kv,
    layer_cache,
    rotate,
    self_attention,
    split_heads,
)
from .decoders import decoder_family, decoder_names
from .gptj import IGNORED, NAMES

SHARDS = 4  # devices of the training, whatever the size of the model


@dataclass(frozen=True, kw_only=True)
class CodeGenConfig(GPTFields):
    """The keys of a CodeGen `config.json`. `rotary_dim` entries of each head are rotated."""

    model_type: ClassVar[str] = "codegen"
    rotary_dim: Size = 64
    tie_word_embeddings: bool = False


class CodeGenAttention(eqx.Module):
    """Rotary attention from one projection: on each shard its queries, its values, and then its keys."""

    qkv_proj: Linear
    out_proj: Linear
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: CodeGenConfig) -> None:
        if c.n_embd % SHARDS:
            raise ValueError(f"codegen: n_embd={c.n_embd} is no multiple of {SHARDS}, the shards of its projections")
        self.qkv_proj = Linear(c.n_embd, 3 * c.n_embd, axes=("heads", "embed"))
        self.out_proj = Linear(c.n_embd, c.n_embd, axes=("embed", "heads"))
        self.heads = c.n_head
        self.head_dim = head_dim(c)
        self.dropout = c.attn_pdrop

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, jax.Array | None]:
        parts = self.qkv_proj(x).reshape(*x.shape[:2], SHARDS, 3, -1)
        q, v, k = (split_heads(parts[:, :, :, n].reshape(x.shape), self.heads) for n in range(3))
        assert context.rope is not None
        q, k = (rotate(part, context.rope["default"], True) for part in (q, k))
        scale = self.head_dim**-0.5
        out, cache, weights = self_attention(q, k, v, context, cache, scale=scale, dropout=self.dropout)
        return self.out_proj(out), cache, weights


@layer_cache.register(CodeGenAttention)
def _(layer: CodeGenAttention, batch_size: int, max_length: int, dtype: Any) -> KV | Ring:
    return empty_kv(batch_size, layer.heads, layer.head_dim, max_length, None, dtype)


def codegen(c: CodeGenConfig) -> Decoder:
    """The decoder: attention and MLP beside each other on one norm."""
    layers = [
        ParallelBlock(
            CodeGenAttention(c),
            MLP(c.n_embd, c.n_inner or 4 * c.n_embd, c.activation_function, bias=True),
            LayerNorm(c.n_embd, c.layer_norm_epsilon),
            dropout=c.resid_pdrop,
        )
        for _ in range(c.n_layer)
    ]
    final, rope = LayerNorm(c.n_embd, c.layer_norm_epsilon), {"default": {"rope_theta": 10000.0}}
    return Decoder(c, layers, final, head_dim=c.rotary_dim, rope=rope, dropout=c.embd_pdrop, padding=False)


decoder_family(
    None,
    CodeGenConfig,
    codegen,
    head={"bias": lambda c: True},
    architectures={"CodeGenForCausalLM": "causal-lm", "CodeGenModel": "base"},
    names=decoder_names("transformer", NAMES),
    prefix="transformer",
    ignore=(*IGNORED, "gradient_checkpointing"),
    ignore_tensors=(r"attn\.(bias|causal_mask|masked_bias)$", r"embed_positions$"),
)
