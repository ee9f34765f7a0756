"""Where the patches of images of any size lie in one row of them, and what positions learned on a square grid say of each."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

CUBIC = -0.75  # torch's `a`


class Patches(NamedTuple):
    """Where each of `count` patches (or merged squares, with `merge=1` and a smaller grid) lies, all `(count,)`."""

    image: jax.Array  # its number
    first: jax.Array  # the number of its image's first patch
    frame: jax.Array  # the number of its frame, over all images
    t: jax.Array
    y: jax.Array
    x: jax.Array
    height: jax.Array  # of its image
    width: jax.Array


def patches(grid_thw: jax.Array, count: int, merge: int = 1) -> Patches:
    """The places of `count` patches of images of the sizes `grid_thw`, in squares of `merge` by `merge`."""
    grid = jnp.asarray(grid_thw, jnp.int32)
    sizes, frames = jnp.prod(grid, axis=1), grid[:, 0]
    ends = jnp.cumsum(sizes)
    number = jnp.arange(count, dtype=jnp.int32)
    image = jnp.clip(jnp.searchsorted(ends, number, side="right"), 0, grid.shape[0] - 1).astype(jnp.int32)
    first = (ends - sizes)[image]
    height, width = grid[image, 1], grid[image, 2]
    t, rest = jnp.divmod(number - first, height * width)
    square, inner = jnp.divmod(rest, merge * merge)
    row, column = jnp.divmod(square, width // merge)
    y, x = row * merge + inner // merge, column * merge + inner % merge
    return Patches(image, first, (jnp.cumsum(frames) - frames)[image] + t, t, y, x, height, width)


def windows(at: Patches, size: int) -> jax.Array:
    """The number, from 1, of the window of `size` by `size` patches that each patch lies in."""
    down, across = -(-at.height // size), -(-at.width // size)
    inside = (at.y // size) * across + at.x // size
    per_frame = down * across
    changed = jnp.concatenate([jnp.ones((1,), bool), at.frame[1:] != at.frame[:-1]])
    before = jnp.cumsum(jnp.where(changed, per_frame, 0)) - per_frame  # windows of the frames before
    return before + inside + 1


def stretched(table: jax.Array, at: Patches) -> jax.Array:
    """Learned positions `(side * side, embed)` for every patch `(patches, embed)`: the grid's corners lie on the image's, and
    what lies between is bilinear."""
    side = math.isqrt(table.shape[0])

    def along(place: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        exact = place.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1)
        low = jnp.floor(exact).astype(jnp.int32)
        return jnp.clip(low, 0, side - 1), jnp.clip(low + 1, 0, side - 1), exact - low

    top, bottom, down = along(at.y, at.height)
    left, right, across = along(at.x, at.width)
    row = lambda y, x: table[y * side + x].astype(jnp.float32)
    mix = lambda a, b, share: a + (b - a) * share[:, None]
    return mix(mix(row(top, left), row(top, right), across), mix(row(bottom, left), row(bottom, right), across), down)


def cubic(table: jax.Array, at: Patches) -> jax.Array:
    """Learned positions `(side * side, embed)` for every patch `(patches, embed)`: bicubic between the middles of the grid's
    cells, as torch's `grid_sample` has it."""
    side = math.isqrt(table.shape[0])

    def along(place: jax.Array, size: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        exact = (place.astype(jnp.float32) + 0.5) * side / size - 0.5
        low = jnp.floor(exact)
        near = lambda x: ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = lambda x: ((x - 5) * x + 8) * x * CUBIC - 4 * CUBIC
        share = exact - low
        taps = (far(share + 1), near(share), near(1 - share), far(2 - share))
        return [(jnp.clip(low.astype(jnp.int32) + t - 1, 0, side - 1), tap) for t, tap in enumerate(taps)]

    total = jnp.zeros((at.y.shape[0], table.shape[1]), jnp.float32)
    for y, down in along(at.y, at.height):
        for x, across in along(at.x, at.width):
            total = total + (down * across)[:, None] * table[y * side + x].astype(jnp.float32)
    return total
