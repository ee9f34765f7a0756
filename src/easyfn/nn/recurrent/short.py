"""A gated short convolution in the place of attention (LFM2, Liquid AI 2025, arXiv 2511.23404)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear
from .conv import CausalConv1d, before_first
from .state import Documents, RecurrentState


class ShortConv(eqx.Module):
    """`out_proj(c * conv(b * x))`, where `in_proj` makes `b`, `c` and `x`: each token sees `kernel` tokens."""

    in_proj: Linear
    conv: CausalConv1d
    out_proj: Linear

    def __init__(self, hidden_size: int, kernel: int, bias: bool = False) -> None:
        self.in_proj = Linear(hidden_size, 3 * hidden_size, bias, axes=("mlp", "embed"))
        self.conv = CausalConv1d(hidden_size, kernel, bias)
        self.out_proj = Linear(hidden_size, hidden_size, bias, axes=("embed", "mlp"))

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any]:
        state: Any = empty_state(self, x.shape[0], x.dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        before, after, x = jnp.split(self.in_proj(x), 3, axis=-1)
        y, conv = self.conv(before * x, documents, state.conv)
        y = self.out_proj(after * y.astype(x.dtype))
        return y, None if cache is None else RecurrentState(conv, None, documents.last)


@layer_cache.register(ShortConv)
def _(layer: ShortConv, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(layer, batch_size, dtype)


def empty_state(layer: ShortConv, batch_size: int, dtype: Any) -> RecurrentState:
    return before_first(layer.conv, batch_size, dtype)
