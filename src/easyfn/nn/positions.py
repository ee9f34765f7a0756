"""Positions that are no rotation: learned tables, sinusoids, and ALiBi as a term of the scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import Slot, Weight, slots, take
from .cache.cache import order_of
from .context import Context
from .encoder import learned_positions
from .linear import declare


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


class SinusoidalPositions(eqx.Module):
    """Sines, and then cosines, of the position at geometric frequencies (Vaswani et al. 2017), without weights.

    The table is fairseq's: frequencies `10000 ** -(i / (dim / 2 - 1))`, positions that begin at `offset`, and zeros at the
    place `zero` (its padding id).
    """

    dim: int = eqx.field(static=True)
    offset: int = eqx.field(static=True, default=0)
    zero: int | None = eqx.field(static=True, default=None)

    def __call__(self, context: Context) -> jax.Array:
        half, place = self.dim // 2, context.position_ids + self.offset
        rates = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000) / (half - 1)))
        angles = place[..., None].astype(jnp.float32) * rates[None, None, :]
        found = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        found = jnp.pad(found, ((0, 0), (0, 0), (0, self.dim % 2)))
        return found if self.zero is None else jnp.where((place == self.zero)[..., None], 0.0, found)


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
