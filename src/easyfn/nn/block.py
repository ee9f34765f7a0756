"""One layer of a decoder, by where its norms stand: before the parts, after them, around them, or beside each other.

The parts of every block:

- `self_attn` is called with `(x, context, cache)` and returns `(y, cache, weights)`, as an `Attention` does;
- `mlp` is called with `(x, context)` and returns `y`, or `(y, router_logits)` where it is a mixture of experts.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .context import Context, dropout

Result = tuple[jax.Array, Any, dict[str, Any]]  # hidden states, cache, optional outputs


def feed_forward(mlp: Any, x: jax.Array, context: Context) -> tuple[jax.Array, Any]:
    """`mlp` of `x`, and its router's logits if it is a mixture of experts."""
    out = mlp(x, context)
    return out if isinstance(out, tuple) else (out, None)


def times(x: jax.Array, factor: float) -> jax.Array:
    """`x` times a number, in its dtype."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


class Block(eqx.Module):
    """Pre-norm: `x + attention(norm(x))`, then `x + mlp(norm(x))`; a norm that is `None` is left out (ModernBERT's first).

    What is added is multiplied by `residual` (Granite), and dropped at the rate `dropout` in training, of the MLP at the
    rate `mlp_dropout` where that is given.
    """

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    residual: float = eqx.field(static=True, default=1.0)
    dropout: float = eqx.field(static=True, default=0.0)
    mlp_dropout: float | None = eqx.field(static=True, default=None)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        h = x if self.input_layernorm is None else self.input_layernorm(x)
        h, cache, attentions = self.self_attn(h, context, cache)
        x = x + dropout(times(h, self.residual), self.dropout, context, 1)
        h, router_logits = feed_forward(self.mlp, self.post_attention_layernorm(x), context)
        rate = self.dropout if self.mlp_dropout is None else self.mlp_dropout
        h = x + dropout(times(h, self.residual), rate, context, 2)
        return h, cache, {"attentions": attentions, "router_logits": router_logits}


class PostNormBlock(eqx.Module):
    """Norms on what the parts return: `x + norm(attention(x))`, then `x + norm(mlp(x))` (OLMo 2, EXAONE 4)."""

    self_attn: Any
    mlp: Any
    post_attention_layernorm: Any
    post_feedforward_layernorm: Any

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        h, cache, attentions = self.self_attn(x, context, cache)
        x = x + self.post_attention_layernorm(h)
        h, router_logits = feed_forward(self.mlp, x, context)
        h = x + self.post_feedforward_layernorm(h)
        return h, cache, {"attentions": attentions, "router_logits": router_logits}


class SandwichBlock(eqx.Module):
    """Norms around each part: `x + norm(attention(norm(x)))`, then `x + norm(mlp(norm(x)))` (Gemma 2 and 3, GLM 4).

    What is added is multiplied by `residual` (HyperCLOVA X).
    """

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    pre_feedforward_layernorm: Any
    post_feedforward_layernorm: Any
    residual: float = eqx.field(static=True, default=1.0, kw_only=True)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        h, cache, attentions = self.self_attn(self.input_layernorm(x), context, cache)
        x = x + times(self.post_attention_layernorm(h), self.residual)
        h, router_logits = feed_forward(self.mlp, self.pre_feedforward_layernorm(x), context)
        h = x + times(self.post_feedforward_layernorm(h), self.residual)
        return h, cache, {"attentions": attentions, "router_logits": router_logits}


class ParallelBlock(eqx.Module):
    """Both parts read the layer's input: `x + attention(norm(x)) + mlp(norm(x))` (GPT-J, Cohere, Phi).

    The MLP has a norm of its own where `post_attention_layernorm` is given (GPT-NeoX), and shares that of the attention
    where it is `None`. What is added is dropped at the rate `dropout` in training.
    """

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any = None
    dropout: float = eqx.field(static=True, default=0.0)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        h = self.input_layernorm(x)
        second = h if self.post_attention_layernorm is None else self.post_attention_layernorm(x)
        h, cache, attentions = self.self_attn(h, context, cache)
        y, router_logits = feed_forward(self.mlp, second, context)
        h, y = dropout(h, self.dropout, context, 1), dropout(y, self.dropout, context, 2)
        return x + h + y, cache, {"attentions": attentions, "router_logits": router_logits}


class AddNormBlock(eqx.Module):
    """Norms on the sums, as in the first transformer: `x = norm(x + attention(x))`, then `norm(x + mlp(x))` (GPT-1)."""

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    dropout: float = eqx.field(static=True, default=0.0)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        h, cache, attentions = self.self_attn(x, context, cache)
        x = self.input_layernorm(x + dropout(h, self.dropout, context, 1))
        h, router_logits = feed_forward(self.mlp, x, context)
        x = self.post_attention_layernorm(x + dropout(h, self.dropout, context, 2))
        return x, cache, {"attentions": attentions, "router_logits": router_logits}
