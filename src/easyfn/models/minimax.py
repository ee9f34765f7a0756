"""MiniMax-01 (MiniMax 2025, arXiv 2501.08313): lightning attention beside softmax attention, experts in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import LlamaFields, Size, alias, head_dim, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Decoder, Experts, Router, SparseMoE
from ..nn.block import Result, feed_forward
from ..nn.context import Context
from ..nn.recurrent.lightning import LightningAttention
from .decoders import attention, check_layer_types, decoder, decoder_family, norm
from .mixtures import per_expert


@dataclass(frozen=True, kw_only=True)
class MiniMaxConfig(LlamaFields):
    """The keys of a MiniMax `config.json`. Without `layer_types` every second layer is linear, from the second on."""

    model_type: ClassVar[str] = "minimax"
    num_experts = alias("num_local_experts")
    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: int = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1000000.0)
    sliding_window: Size | None = None
    num_experts_per_tok: Size = 2
    num_local_experts: Size = 8
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0
    layer_types: tuple[str, ...] | None = None
    block_size: Size = 256
    full_attn_alpha_factor: float | int = 1
    full_attn_beta_factor: float | int = 1
    linear_attn_alpha_factor: float | int = 1
    linear_attn_beta_factor: float | int = 1
    mlp_alpha_factor: float | int = 1
    mlp_beta_factor: float | int = 1


class MiniMaxBlock(eqx.Module):
    """What is added to is normed too: `x = norm(x)`, `x = alpha x + beta attention(x)`, and the same with the experts.

    `attn` and `experts` are the two factors, `(alpha, beta)`, of each part.
    """

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    attn: tuple[float, float] = eqx.field(static=True)
    experts: tuple[float, float] = eqx.field(static=True)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        x = self.input_layernorm(x)
        h, cache, attentions = self.self_attn(x, context, cache)
        x = self.post_attention_layernorm(_sum(x, h, self.attn))
        h, router_logits = feed_forward(self.mlp, x, context)
        return _sum(x, h, self.experts), cache, {"attentions": attentions, "router_logits": router_logits}


def _sum(x: jax.Array, h: jax.Array, factors: tuple[float, float]) -> jax.Array:
    alpha, beta = (jnp.asarray(f, x.dtype) for f in factors)
    return alpha * x + beta * h


def minimax(c: MiniMaxConfig) -> Decoder:
    """The decoder: lightning attention or rotary grouped-query attention, then experts; residuals are normed and weighed."""
    layers = c.num_hidden_layers
    kinds = c.layer_types or tuple(("full_attention", "linear_attention")[i % 2] for i in range(layers))
    check_layer_types(c, kinds, ("full_attention", "linear_attention"))

    def lightning(i: int) -> LightningAttention:
        depth = 1.0 - i / (layers - 1 + 1e-5) + 1e-5
        sizes = {"heads": c.num_attention_heads, "head_dim": head_dim(c), "block": c.block_size}
        return LightningAttention(c.hidden_size, **sizes, depth=depth, act=c.hidden_act)

    def block(i: int) -> MiniMaxBlock:
        full = kinds[i] == "full_attention"
        name = "full" if full else "linear"
        factors = [getattr(c, f"{name}_attn_{which}_factor") for which in ("alpha", "beta")]
        return MiniMaxBlock(
            attention(c, window=c.sliding_window) if full else lightning(i),
            SparseMoE(
                Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok),
                Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
                jitter=c.router_jitter_noise,
            ),
            norm(c),
            norm(c),
            (float(factors[0]), float(factors[1])),
            (float(c.mlp_alpha_factor), float(c.mlp_beta_factor)),
        )

    return decoder(c, block)


_ROUTER = "{rest}layers.{i}.%s.gate.weight"

decoder_family(
    "MiniMax",
    MiniMaxConfig,
    minimax,
    tags="score",
    answers="model",
    names=(
        *per_expert("w1", "w3", "w2", theirs="block_sparse_moe"),
        rename(_ROUTER % "mlp", _ROUTER % "block_sparse_moe"),
    ),
    optional=(r"\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$",),
)
