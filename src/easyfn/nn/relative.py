"""Relative positions as a learned bias on attention scores, by the bucket of a distance (T5, MPNet)."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .context import Context
from .linear import Embedding


def buckets(distance: jax.Array, *, bidirectional: bool, count: int, max_distance: int) -> jax.Array:
    """The bucket of each relative position `key - query`, int32: exact when near, logarithmic when far.

    With `bidirectional`, half of the buckets are for keys after the query; without, those share bucket 0.
    """
    if bidirectional:
        count //= 2
    exact = count // 2
    # As a table in float32, because the boundaries depend on the last bit of a logarithm.
    steps = np.arange(max_distance + 1)
    logs = np.log(np.maximum(steps, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    far = exact + (logs * np.float32(count - exact)).astype(np.int32)
    table = jnp.asarray(np.where(steps < exact, steps, np.minimum(far, count - 1)), jnp.int32)
    near = table[jnp.clip(jnp.abs(distance) if bidirectional else -distance, 0, max_distance)]
    return near + jnp.where(distance > 0, count, 0) if bidirectional else near


class RelativeBias(eqx.Module):
    """A table `(rows, heads)` of biases by bucket; `count` of its rows are buckets of distances."""

    weight: Embedding
    count: int = eqx.field(static=True)
    max_distance: int = eqx.field(static=True)
    bidirectional: bool = eqx.field(static=True)

    def __init__(
        self,
        rows: int,
        heads: int,
        *,
        count: int | None = None,
        max_distance: int = 128,
        bidirectional: bool = True,
        std: float | None = None,
    ) -> None:
        self.weight = Embedding(rows, heads, axes=(None, "heads"), std=std)
        self.count = count or rows
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        if self.count > rows:
            raise ValueError(f"a table of {rows} relative positions is too short for {self.count} buckets")

    def __call__(self, context: Context, keys: jax.Array | None = None) -> jax.Array:
        """`(1 or batch, heads, queries, keys)`, by distance in the sequence; padding moves both ends of it alike.

        `keys` are the places of the keys in the sequence, by default those of the queries.
        """
        keys = context.slots if keys is None else keys
        which = buckets(
            keys[..., None, :] - context.slots[..., :, None],
            bidirectional=self.bidirectional,
            count=self.count,
            max_distance=self.max_distance,
        )
        which = which if which.ndim == 3 else which[None]  # one for all rows
        return jnp.moveaxis(self.weight(which), -1, -3)
