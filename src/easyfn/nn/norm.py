"""Normalisation, in float32 whatever the dtype of the input; the result has the input's dtype."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from .linear import along_last, declare


class RMSNorm(eqx.Module):
    """`x / sqrt(mean(x^2) + eps) * (offset + weight)` over the last axis (Zhang and Sennrich, 2019).

    Gemma stores `weight - 1`: its `offset` is 1.
    """

    weight: Weight
    eps: float = eqx.field(static=True)
    offset: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-6, *, offset: float = 0.0) -> None:
        self.weight = declare(dim)
        self.eps = eps
        self.offset = offset

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        weight = along_last(dense(self.weight).astype(jnp.float32), h)
        return (h * (self.offset + weight if self.offset else weight)).astype(x.dtype)


class LayerNorm(eqx.Module):
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last axis (Ba et al., 2016)."""

    weight: Weight
    bias: Weight | None
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-5, *, bias: bool = True) -> None:
        self.weight = declare(dim)
        self.bias = declare(dim) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + self.eps)
        h = h * along_last(dense(self.weight).astype(jnp.float32), h)
        if self.bias is not None:
            h = h + along_last(dense(self.bias).astype(jnp.float32), h)
        return h.astype(x.dtype)


@slots.register(RMSNorm)
def _(norm: RMSNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "zeros" if norm.offset else "ones")}


@slots.register(LayerNorm)
def _(norm: LayerNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "ones"), "bias": Slot("bias", ("norm",), "zeros")}
