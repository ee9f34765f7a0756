"""Projectors: from what an image tower says to what a language model reads, `(images, patches, wide)` to `(images, tokens,
embed)`."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import shape_of
from .activation import activation
from .linear import Linear
from .norm import LayerNorm


class Projector(eqx.Module):
    """`linear_2(act(linear_1(x)))`: from the width of the tower to that of the language model, by way of `hidden`, where that is
    another; normed before, if there is a `norm`."""

    layer_norm: Any
    linear_1: Linear
    linear_2: Linear
    act: str = eqx.field(static=True)

    def __init__(
        self, size: int, out: int, act: str, *, bias: bool = True, hidden: int | None = None, norm: Any = None
    ) -> None:
        activation(act)
        hidden = out if hidden is None else hidden
        self.layer_norm = norm
        self.linear_1 = Linear(size, hidden, bias, axes=("mlp", "embed"))
        self.linear_2 = Linear(hidden, out, bias, axes=("embed", "mlp"))
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x if self.layer_norm is None else self.layer_norm(x)
        return self.linear_2(activation(self.act)(self.linear_1(x)))


class LinearProjector(eqx.Module):
    """One linear layer, called `linear` (PaliGemma; without a bias, Llama 4)."""

    linear: Linear

    def __init__(self, size: int, out: int, *, bias: bool = True) -> None:
        self.linear = Linear(size, out, bias, axes=("embed", None))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)


class PooledProjector(eqx.Module):
    """Means over squares of patches, normed, through one matrix (Gemma 3): `side` patches on each side of an image become
    `side // square`."""

    mm_soft_emb_norm: Any
    mm_input_projection: Linear
    side: int = eqx.field(static=True)
    square: int = eqx.field(static=True)

    def __init__(self, size: int, out: int, norm: Any, *, side: int, square: int) -> None:
        self.mm_soft_emb_norm = norm
        self.mm_input_projection = Linear(size, out, axes=("embed", None))
        self.side, self.square = side, square

    def __call__(self, x: jax.Array) -> jax.Array:
        count, size = self.side // self.square, self.square
        x = x.reshape(x.shape[0], self.side, self.side, -1)[:, : count * size, : count * size]
        x = x.reshape(x.shape[0], count, size, count, size, -1)
        pooled = jnp.mean(x.astype(jnp.float32), axis=(2, 4)).astype(x.dtype)
        return self.mm_input_projection(self.mm_soft_emb_norm(pooled.reshape(x.shape[0], count * count, -1)))


def squares(x: jax.Array, size: int) -> jax.Array:
    """Patches of square images in squares of `size` by `size`, side by side: `(images, n, wide)` to `(images, n / size^2, wide *
    size^2)`."""
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1] or side % size:
        raise ValueError(f"an image has {x.shape[1]} patches: they make no square whose side is a multiple of {size}")
    x = x.reshape(x.shape[0], side // size, size, side // size, size, -1)
    return jnp.swapaxes(x, 2, 3).reshape(x.shape[0], (side // size) ** 2, -1)


class SquareLinear(eqx.Module):
    """Squares of patches, side by side, through one matrix (Idefics3)."""

    proj: Linear
    square: int = eqx.field(static=True)

    def __init__(self, size: int, out: int, square: int) -> None:
        self.proj = Linear(size * square**2, out, axes=("embed", None))
        self.square = square

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(squares(x, self.square))


class NormedSquares(eqx.Module):
    """Squares of `merge` by `merge` patches, each patch normed, through a matrix as wide as one, and a `Projector` (Mistral 3).
    A square comes as its channels, the patches of each side by side: `(squares, embed * merge^2)`."""

    norm: Any
    patch_merger: Linear
    linear_1: Linear
    linear_2: Linear
    act: str = eqx.field(static=True)

    def __init__(self, norm: Any, size: int, out: int, merge: int, act: str, *, bias: bool) -> None:
        activation(act)
        self.norm = norm
        self.patch_merger = Linear(size * merge**2, size, axes=("embed", None))
        self.linear_1 = Linear(size, out, bias, axes=("mlp", "embed"))
        self.linear_2 = Linear(out, out, bias, axes=("embed", "mlp"))
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = shape_of(self.norm.weight)[-1]
        channels = lambda x: jnp.swapaxes(x, -1, -2)
        normed = channels(self.norm(channels(x.reshape(*x.shape[:-1], wide, -1)))).reshape(x.shape)
        return self.linear_2(activation(self.act)(self.linear_1(self.patch_merger(normed))))


class SquareProjector(eqx.Module):
    """Squares of patches, side by side, normed, through two linear layers (InternVL)."""

    layer_norm: LayerNorm
    linear_1: Linear
    linear_2: Linear
    act: str = eqx.field(static=True)
    square: int = eqx.field(static=True)

    def __init__(self, size: int, out: int, square: int, act: str) -> None:
        activation(act)
        wide = size * square**2
        self.layer_norm = LayerNorm(wide)
        self.linear_1 = Linear(wide, out, True, axes=("mlp", "embed"))
        self.linear_2 = Linear(out, out, True, axes=("embed", "mlp"))
        self.act, self.square = act, square

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.linear_1(self.layer_norm(squares(x, self.square)))
        return self.linear_2(activation(self.act)(x))
