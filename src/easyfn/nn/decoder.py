"""The decoder that Llama, Mistral, Qwen, Mixtral and Gemma share: embed, fold the layers, norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.frozen import Frozen
from .attention.rope import TYPES, rope_table, unknown_rope
from .context import Context
from .fold import fold
from .linear import Embedding
from .output import Output


class Block(eqx.Module):
    """Pre-norm: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    `self_attn` is called with `(x, context, cache)` and returns `(y, cache, weights)`, as an `Attention` does.
    `mlp` is called with `(x, context)` and returns `y`, or `(y, router_logits)` where it is a mixture of experts.
    """

    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h, cache, attentions = self.self_attn(self.input_layernorm(x), context, cache)
        x = x + h
        h = self.mlp(self.post_attention_layernorm(x), context)
        h, router_logits = h if isinstance(h, tuple) else (h, None)
        return x + h, cache, {"attentions": attentions, "router_logits": router_logits}


class Decoder(eqx.Module):
    """Token ids to hidden states. `rope` holds the parameters of each rotary table that layers name."""

    embed_tokens: Embedding
    layers: tuple[Any, ...]
    norm: Any
    config: Any = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    rope: Frozen = eqx.field(static=True)
    embed_scale: float | None = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        layers: Sequence[Any],
        norm: Any,
        *,
        head_dim: int,
        rope: dict[str, Any],
        embed_scale: float | None = None,
    ) -> None:
        for parameters in rope.values():  # fails here, not in the first forward pass
            if parameters.get("rope_type", "default") not in TYPES:
                raise unknown_rope(parameters["rope_type"])
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = tuple(layers)
        self.norm = norm
        self.config = config
        self.head_dim = head_dim
        self.rope = Frozen(rope)
        self.embed_scale = embed_scale

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
    ) -> Output:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.embed_scale is not None and inputs_embeds is None:
            x = x * jnp.asarray(self.embed_scale, x.dtype)  # rounded to the dtype, as the checkpoint was trained
        positions, limit = context.position_ids, self.config.max_position_embeddings
        tables = {name: rope_table(p, self.head_dim, limit, positions) for name, p in self.rope.items()}
        x, cache, trace = fold(self.layers, x, context.replace(rope=tables), cache)
        x = self.norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)
