"""Normalisation, in float32 whatever the dtype of the input; the result has the input's dtype."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.weight import Slot, Weight, dense, slots
from .linear import along_last, declare


# One program each where a norm is called eagerly, nothing of their own inside another.
@functools.partial(jax.jit, inline=True)
def _centred(h: jax.Array) -> jax.Array:
    return h - jnp.mean(h, axis=-1, keepdims=True)


@functools.partial(jax.jit, inline=True, static_argnames="eps")
def _scaled(h: jax.Array, eps: float) -> jax.Array:
    return h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)


def _weighted(h: jax.Array, weight: Weight | None, offset: float) -> jax.Array:
    if weight is None:
        return h
    w = along_last(dense(weight).astype(jnp.float32), h)
    return h * (offset + w if offset else w)


class RMSNorm(eqx.Module):
    """`x / sqrt(mean(x^2) + eps) * (offset + weight)` over the last axis (Zhang and Sennrich, 2019).

    Gemma stores `weight - 1`: its `offset` is 1. Without `affine` there is no weight, and nothing to multiply by. `float32`
    names the dtypes of a model in which the weight is float32 all the same.
    """

    weight: Weight | None
    eps: float = eqx.field(static=True)
    offset: float = eqx.field(static=True)
    float32: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        offset: float = 0.0,
        affine: bool = True,
        float32: tuple[str, ...] = (),
    ) -> None:
        self.weight = declare(dim) if affine else None
        self.eps = eps
        self.offset = offset
        self.float32 = float32

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _weighted(_scaled(x.astype(jnp.float32), self.eps), self.weight, self.offset).astype(x.dtype)


class LayerNorm(eqx.Module):
    """`(x - mean) / sqrt(var + eps) * (offset + weight) + bias` over the last axis (Ba et al., 2016).

    Nemotron stores `weight - 1`: its `offset` is 1. Without `affine` (OLMo) there is neither weight nor bias.
    """

    weight: Weight | None
    bias: Weight | None
    eps: float = eqx.field(static=True)
    offset: float = eqx.field(static=True)

    def __init__(
        self, dim: int, eps: float = 1e-5, *, bias: bool = True, offset: float = 0.0, affine: bool = True
    ) -> None:
        self.weight = declare(dim) if affine else None
        self.bias = declare(dim) if bias and affine else None
        self.eps = eps
        self.offset = offset

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        h = _weighted(_scaled(_centred(x.astype(jnp.float32)), self.eps), self.weight, self.offset)
        if self.bias is not None:
            h = h + along_last(dense(self.bias).astype(jnp.float32), h)
        return h.astype(x.dtype)


class HeadNorm(eqx.Module):
    """LayerNorm of each head with a weight of its own, `(heads, dim)`: `x` is `(batch, heads, seq, dim)` (Cohere, StableLM)."""

    weight: Weight
    eps: float = eqx.field(static=True)

    def __init__(self, heads: int, dim: int, eps: float = 1e-5) -> None:
        self.weight = declare(heads, dim)
        self.eps = eps

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        weight = dense(self.weight).astype(jnp.float32)[None, :, None]
        return (_scaled(_centred(x.astype(jnp.float32)), self.eps) * weight).astype(x.dtype)


class BatchNorm(eqx.Module):
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, by the mean and variance that a file holds (Ioffe
    and Szegedy, 2015).

    These are buffers: a batch that trains is normed by them too, and changes nothing in them.
    """

    weight: Weight
    bias: Weight
    running_mean: Weight
    running_var: Weight
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.running_mean, self.running_var = (declare(dim) for _ in range(4))
        self.eps = eps

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        parts = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (along_last(dense(part).astype(jnp.float32), x) for part in parts)
        return ((x.astype(jnp.float32) - mean) * (jax.lax.rsqrt(var + self.eps) * weight) + bias).astype(x.dtype)


@slots.register(BatchNorm)
def _(norm: BatchNorm) -> dict[str, Slot]:
    learned = {"weight": Slot("norm", ("norm",), "ones"), "bias": Slot("bias", ("norm",), "zeros")}
    held = {"running_mean": Slot("buffer", ("norm",), "zeros"), "running_var": Slot("buffer", ("norm",), "ones")}
    return {**learned, **held}


@slots.register(RMSNorm)
def _(norm: RMSNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "zeros" if norm.offset else "ones", norm.float32)}


@slots.register(LayerNorm)
def _(norm: LayerNorm) -> dict[str, Slot]:
    weight = Slot("norm", ("norm",), "zeros" if norm.offset else "ones")
    return {"weight": weight, "bias": Slot("bias", ("norm",), "zeros")}


@slots.register(HeadNorm)
def _(norm: HeadNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", (None, "norm"), "ones")}
