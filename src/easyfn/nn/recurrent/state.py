"""What recurrent layers remember, and which document a token continues.

A recurrent layer has no mask to hide padding behind. So padding changes no state: its step is zero, the convolution
looks past it, and at the border of two packed documents both start anew. A document is a run of one segment.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from ..cache.axes import cache_axes
from ..cache.cache import rewindable


class RecurrentState(eqx.Module):
    """What a recurrent layer remembers of each row: its size does not grow with the sequence.

    `conv` `(batch, kernel - 1, channels)` are the last inputs of its convolution, zeros where there were none; `ssm`, float32
    with the rows first, is what it carries from token to token (`(batch, heads, head_dim, state)` of Mamba-2 and the delta
    rule). Either is `None` in a layer that has no such part. What was added to a state cannot be taken back.
    """

    conv: jax.Array | None
    ssm: jax.Array | None
    segment_ids: jax.Array  # [batch] int32, the document that the state belongs to; 0 = none yet


@cache_axes.register(RecurrentState)
def _(cache: RecurrentState) -> tuple[str, ...]:
    conv = () if cache.conv is None else ("batch inputs channels",)
    if cache.ssm is None:
        return (*conv, "batch")
    stacked = cache.segment_ids.ndim - 1
    # Heads, or channels, come first in every state.
    return (*conv, " ".join(["batch", "heads", "key", "value"][: cache.ssm.ndim - stacked]), "batch")


@rewindable.register(RecurrentState)
def _(cache: RecurrentState) -> bool:
    return False


class Documents(eqx.Module):
    """Which document each token continues, padding looked through.

    `index` counts the borders before a token, from 0 for the document of the cached state: tokens of one document have
    one number, and padding has the number of the token before it.
    """

    real: jax.Array  # [batch, seq] bool
    index: jax.Array  # [batch, seq] int32
    last: jax.Array  # [batch] int32, the segment id in which the row ends

    @classmethod
    def of(cls, segment_ids: jax.Array, before: jax.Array) -> Documents:
        """Of `segment_ids` `(batch, seq)` after the segments `before` `(batch,)`."""
        real = segment_ids > 0
        place = jnp.where(real, jnp.arange(1, segment_ids.shape[1] + 1, dtype=jnp.int32)[None], 0)
        place = jax.lax.cummax(place, axis=1)  # 1 + the place of the last token up to here; 0: it is in the cache
        all_segments = jnp.concatenate([before[:, None], segment_ids], axis=1)
        running = jnp.take_along_axis(all_segments, place, axis=1)
        previous = jnp.concatenate([before[:, None], running[:, :-1]], axis=1)
        return cls(real, jnp.cumsum(running != previous, axis=1, dtype=jnp.int32), running[:, -1])


def step_biases(key: jax.Array, shape: tuple[int, ...], steps: tuple[float, float, float]) -> jax.Array:
    """Biases whose softplus is a time step: drawn, evenly in its logarithm, from between the first two of `steps`, and at
    least the third."""
    low, high, floor = steps
    dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))), floor)
    return dt + jnp.log(-jnp.expm1(-dt))
