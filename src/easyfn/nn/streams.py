"""Hyper-connections (Zhu et al. 2024, arXiv 2409.19606): several residual streams beside each other, which layers read as
mixtures and answer in parts, as Qwen4-Exp has them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from .linear import Linear, along_last, declare
from .norm import RMSNorm


class StreamNorm(eqx.Module):
    """An RMSNorm of each of several streams, which lie side by side; their weights are stored less one."""

    weight: Weight
    norm: RMSNorm
    width: int = eqx.field(static=True)

    def __init__(self, count: int, width: int, eps: float) -> None:
        self.weight = declare(count * width)
        self.norm = RMSNorm(width, eps, affine=False)
        self.width = width

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, self.width)).reshape(x.shape)
        return (h * (1.0 + along_last(dense(self.weight).astype(jnp.float32), h))).astype(x.dtype)


@slots.register(StreamNorm)
def _(norm: StreamNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "zeros")}


class Streams(eqx.Module):
    """Embeddings, once for each stream."""

    count: int = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tile(x, (1, 1, self.count))


class HyperConnection(eqx.Module):
    """What a layer reads of the streams, a mixture by weights for each entry, and how much of its answer each stream takes. The
    one behind all layers has no answers to give."""

    hc_norm: StreamNorm
    input_mix_weight_down: Linear
    input_mix_weight_up: Linear
    block_inject_weight: Linear | None
    count: int = eqx.field(static=True)

    def __init__(self, count: int, width: int, rank: int, eps: float, *, last: bool = False) -> None:
        wide = count * width
        self.hc_norm = StreamNorm(count, width, eps)
        self.input_mix_weight_down = Linear(wide, rank, axes=(None, "embed"))
        self.input_mix_weight_up = Linear(rank, wide, axes=("embed", None))
        self.block_inject_weight = None if last else Linear(wide, count, axes=(None, "embed"))
        self.count = count

    def mixed(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a layer reads `(batch, seq, embed)`, and the normed streams."""
        normed = self.hc_norm(x)
        h = jax.nn.silu(self.input_mix_weight_down(normed) / self.count)
        weights = jax.nn.sigmoid(self.input_mix_weight_up(h))
        apart = (weights * normed).reshape(*x.shape[:-1], self.count, -1)
        return jnp.mean(apart.astype(jnp.float32), axis=-2).astype(x.dtype), normed

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.mixed(x)[0]

    def taken(self, x: jax.Array, normed: jax.Array, answer: jax.Array) -> jax.Array:
        """The streams `x`, of which each takes its part of `answer`."""
        assert self.block_inject_weight is not None
        weights = 2 * jax.nn.sigmoid(self.block_inject_weight(normed) / self.count)
        return x + (answer[..., None, :] * weights[..., None]).reshape(x.shape)
