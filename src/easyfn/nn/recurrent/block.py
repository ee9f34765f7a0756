"""A layer of a decoder whose first part is a recurrence."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..block import Result, feed_forward
from ..context import Context


def _times(x: jax.Array, factor: float) -> jax.Array:
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


class RecurrentBlock(eqx.Module):
    """Pre-norm, as [`easyfn.nn.Block`][]: `x + mixer(norm(x))`, then `x + mlp(norm(x))`.

    `mixer` is called with `(x, context, cache)` and returns `(y, cache)`. In files it has another name in each family:
    `linear_attn`, `conv`, `mamba`. What is added is multiplied by `residual`.
    """

    mixer: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any
    residual: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> Result:
        h, cache = self.mixer(self.input_layernorm(x), context, cache)
        x = x + _times(h, self.residual)
        h, router_logits = feed_forward(self.mlp, self.post_attention_layernorm(x), context)
        return x + _times(h, self.residual), cache, {"router_logits": router_logits}
