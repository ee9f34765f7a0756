"""Positions that are no rotation: learned tables, sinusoids, and ALiBi as a term of the scores."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import Slot, Weight, shape_of, slots, take
from .cache.cache import order_of
from .context import Context
from .encoder import learned_positions, within
from .heads import max_positions
from .linear import along_last, declare


class LearnedPositions(eqx.Module):
    """A row of a table for each position, which starts at row `offset` (OPT's at 2): `(batch, seq, embed)`.

    A position that the table does not have is a `ValueError`, and NaN in a compiled function.
    """

    weight: Weight
    offset: int = eqx.field(static=True)

    def __init__(self, positions: int, dim: int, *, offset: int = 0) -> None:
        self.weight = declare(positions + offset, dim)
        self.offset = offset

    def __call__(self, context: Context) -> jax.Array:
        return learned_positions(_Table(self.weight), context.position_ids, offset=self.offset)


class _Table(NamedTuple):
    """A weight as the layer that `learned_positions` looks into."""

    weight: Weight

    def __call__(self, ids: jax.Array) -> jax.Array:
        return take(self.weight, ids)


@slots.register(LearnedPositions)
def _(layer: LearnedPositions) -> dict[str, Slot]:
    return {"weight": Slot("embedding", (None, "embed"))}


class FixedPositions(eqx.Module):
    """As [`easyfn.nn.LearnedPositions`][], of a table of sinusoids that a file holds and no training changes."""

    weight: Weight

    def __init__(self, positions: int, dim: int) -> None:
        self.weight = declare(positions, dim)

    def __call__(self, context: Context) -> jax.Array:
        return learned_positions(_Table(self.weight), context.position_ids)


@slots.register(FixedPositions)
def _(layer: FixedPositions) -> dict[str, Slot]:
    table = lambda key, shape, dtype: sinusoids(jnp.arange(shape[0]), shape[1]).astype(dtype)
    return {"weight": Slot("buffer", (None, "embed"), table)}


@max_positions.register(LearnedPositions, FixedPositions)
def _(layer: Any) -> int:
    return shape_of(layer.weight)[0] - getattr(layer, "offset", 0)


def sinusoids(places: jax.Array, dim: int, *, fairseq: bool = False) -> jax.Array:
    """Sines, and then cosines, of places `(...)` at geometric frequencies: float32 `(..., dim)`.

    The frequencies are `10000 ** -(2 * i / dim)` (Vaswani et al. 2017), or fairseq's, `10000 ** -(i / (dim / 2 - 1))`.
    """
    half = dim // 2
    steps = np.arange(half) / (half - 1) if fairseq else np.arange(-(-dim // 2)) * 2 / dim
    rates = jnp.asarray(10000.0**-steps, jnp.float32)
    angles = places[..., None].astype(jnp.float32) * along_last(rates, places[..., None])
    found = jnp.concatenate([jnp.sin(angles), jnp.cos(angles[..., :half])], axis=-1)
    return jnp.concatenate([found, jnp.zeros((*places.shape, dim - found.shape[-1]))], axis=-1)


class SinusoidalPositions(eqx.Module):
    """Sines and cosines of the position (see [`easyfn.nn.sinusoids`][]), without weights: `(batch, seq, embed)`.

    As fairseq has them, positions begin at `offset` and there are zeros at the place `zero` (its padding id). With a
    `size`, there are so many positions: others are a `ValueError`, and NaN in a compiled function.
    """

    dim: int = eqx.field(static=True)
    offset: int = eqx.field(static=True, default=0)
    zero: int | None = eqx.field(static=True, default=None)
    fairseq: bool = eqx.field(static=True, default=True)
    size: int | None = eqx.field(static=True, default=None)

    def __call__(self, context: Context) -> jax.Array:
        place = context.position_ids + self.offset
        found = sinusoids(place, self.dim, fairseq=self.fairseq)
        if self.size is not None:
            found = jnp.where(within(context.position_ids, self.size)[..., None], found, jnp.nan)
        return found if self.zero is None else jnp.where((place == self.zero)[..., None], 0.0, found)


@max_positions.register(SinusoidalPositions)
def _(layer: SinusoidalPositions) -> int | None:
    return layer.size


class Alibi(NamedTuple):
    """Attention with linear biases (Press et al. 2022, arXiv 2108.12409): `slope * position of the key`, by head.

    A softmax does not see what is added to all scores of a query, so that is the bias by distance. Padding has no
    position. `scale` multiplies it; `rounded` rounds slopes, positions and products to bfloat16, as Falcon was trained.
    """

    heads: int
    scale: float = 1.0
    rounded: bool = False

    def __call__(self, context: Context, *, cached: bool) -> jax.Array:
        """`(1 or batch, heads, queries, keys)`, float32: a term of the scores of a pass, and of the slots of its cache."""
        keys = context.order
        if cached and not context.fresh:
            assert context.cached_segment_ids is not None
            keys = order_of(context.cached_segment_ids)
        places = keys if keys.ndim == 2 else keys[None]
        round_ = (lambda x: jax.lax.reduce_precision(x, 8, 7)) if self.rounded else (lambda x: x)
        slopes = round_(jnp.asarray(alibi_slopes(self.heads)))[None, :, None, None]
        bias = round_(slopes * round_(places.astype(jnp.float32))[:, None, None, :]) * self.scale
        return jnp.broadcast_to(bias, (*bias.shape[:2], context.segment_ids.shape[1], bias.shape[3]))


def alibi_slopes(heads: int) -> np.ndarray:
    """The slope of each head, float32 `(heads,)`: a geometric sequence from `2 ** (-8 / n)`, where `n` is the largest power
    of two that is not above `heads`; the heads that remain take every other slope of `2 * n` heads."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    rest = [2.0 ** (-8.0 * i / (2 * power)) for i in range(1, 2 * (heads - power) + 1, 2)]
    return np.asarray([*first, *rest], np.float32)
