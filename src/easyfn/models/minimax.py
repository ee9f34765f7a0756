"""MiniMax-01 (MiniMax 2025, arXiv 2501.08313): lightning attention beside softmax attention, experts in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import Size, head_dim
from ..nn import Decoder
from ..nn.block import Result, feed_forward
from ..nn.context import Context
from ..nn.recurrent.lightning import LightningAttention
from .decoders import attention, check_layer_types, decoder, decoder_family, norm
from .mixtures import MIXTRAL, MixtralFields, mixtral_experts


@dataclass(frozen=True, kw_only=True)
class MiniMaxConfig(MixtralFields):
    """The keys of a MiniMax `config.json`. Without `layer_types` every second layer is linear, from the second on."""

    model_type: ClassVar[str] = "minimax"
    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: int = 32
    num_attention_heads: Size = 32
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
    kinds = c.layer_types or tuple(("full_attention", "linear_attention")[i % 2] for i in range(c.num_hidden_layers))
    check_layer_types(c, kinds, ("full_attention", "linear_attention"))

    def lightning() -> LightningAttention:
        sizes = {"heads": c.num_attention_heads, "head_dim": head_dim(c), "block": c.block_size}
        return LightningAttention(c.hidden_size, **sizes, act=c.hidden_act)

    def block(i: int) -> MiniMaxBlock:
        full = kinds[i] == "full_attention"
        name = "full" if full else "linear"
        factors = [getattr(c, f"{name}_attn_{which}_factor") for which in ("alpha", "beta")]
        return MiniMaxBlock(
            attention(c, window=c.sliding_window) if full else lightning(),
            mixtral_experts(c),
            norm(c),
            norm(c),
            (float(factors[0]), float(factors[1])),
            (float(c.mlp_alpha_factor), float(c.mlp_beta_factor)),
        )

    return decoder(c, block)


decoder_family(
    "MiniMax",
    MiniMaxConfig,
    minimax,
    tags="score",
    answers="model",
    names=MIXTRAL,
    optional=(r"\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$",),
)
