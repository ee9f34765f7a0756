"""How the features of images that come in several pieces become one row of features, in the order of their tokens.

How many there are depends on the sizes of the images, which are data; so each answers as many rows as there might be tokens,
and how many of them count. All of it is arithmetic on arrays, for any number of images in one compiled program.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import Slot, Weight, dense, slots
from .grid_places import patches
from .linear import declare
from .resize import resize_grid


def scaled(number: jax.Array, size: jax.Array, of: jax.Array) -> jax.Array:
    """`int(number * (size / of))` as Python computes it in 64-bit floats, for integers up to 32767.

    Where the exact result is an integer and the quotient was rounded down, that may be one less: image processors
    choose the tiles of an image by it.
    """
    exact = number * size // of
    power = lambda n: 31 - jax.lax.clz(n)  # of the highest bit
    more = power(size) - power(of)
    less = jnp.where(more >= 0, size < of << jnp.maximum(more, 0), size << jnp.maximum(-more, 0) < of)
    shift = 52 - more + less  # the 53 bits of the quotient are those of 2**shift * size / of
    double = lambda i, rest: jnp.where(i < shift, rest * 2 % of, rest)
    rest = jax.lax.fori_loop(0, 72, double, jnp.broadcast_to(size % of, exact.shape))
    # The product lacks rest * number / of / 2**shift. It rounds to the float below the integer if that is more than half a step.
    half = shift + power(jnp.maximum(exact - 1, 1)) - 53
    lost = (number * size % of == 0) & (rest * 2 < of) & (rest * number > of * 2.0**half)
    return exact - lost


@functools.cache
def shrunk(side: int, longest: int, most: int) -> np.ndarray:
    """The size `(height, width)` to which a grid of tiles of `side` patches is resampled, by its own height and width, at most
    `longest` each: that which leaves `most` tiles, in the 64-bit floats of the processor, or its own."""
    high, wide = np.meshgrid(*2 * [np.arange(longest + 1, dtype=np.float64)], indexing="ij")
    ratio = np.maximum(np.sqrt(high * wide / (most * side**2)), 1.0)
    ratio = np.where(ratio > 1.1, ratio, 1.0)
    return np.stack([high // ratio, wide // ratio], axis=-1).astype(np.int32)


class AnyResolution(eqx.Module):
    """LLaVA-NeXT's: an image small as a whole, and then large in tiles, without the padding of its tiles, `image_newline`
    behind each row (Liu et al. 2024, "LLaVA-NeXT").

    `resolutions` `(height, width)` are those to which an image may be enlarged, `tile` is the size of a tile in pixels and
    `side` in patches. `most` (LLaVA-OneVision): a larger image is resampled to the patches of so many tiles, and one of
    several in a row has no tiles.
    """

    first: ClassVar[bool] = False  # its features are projected before
    image_newline: Weight
    resolutions: tuple[tuple[int, int], ...] = eqx.field(static=True)
    tile: int = eqx.field(static=True)
    side: int = eqx.field(static=True)
    most: int | None = eqx.field(static=True)

    def __init__(
        self, size: int, resolutions: tuple[tuple[int, int], ...], *, tile: int, side: int, most: int | None = None
    ) -> None:
        if not resolutions or any(h % tile or w % tile for h, w in resolutions):
            raise ValueError(f"image_grid_pinpoints={resolutions} are (height, width), multiples of image_size={tile}")
        self.image_newline = declare(size)
        self.resolutions, self.tile, self.side, self.most = resolutions, tile, side, most

    def grid(self, image_sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """How many tiles images of `image_sizes` `(images, 2)` have, down and across: of the resolution that keeps most of their
        pixels, and of those the one that wastes least."""
        height, width = image_sizes[:, :1], image_sizes[:, 1:]
        high, wide = (jnp.asarray(np.array(self.resolutions).T[i])[None] for i in (0, 1))
        narrow = wide * height <= high * width  # the width is what limits
        limit, of, other = (jnp.where(narrow, *both) for both in ((wide, high), (width, height), (height, width)))
        kept = jnp.minimum(scaled(of, limit, of) * scaled(other, limit, of), height * width)
        wasted = jnp.where(kept == jnp.max(kept, axis=1, keepdims=True), high * wide - kept, np.iinfo(np.int32).max)
        best = jnp.argmin(wasted, axis=1)
        return high[0][best] // self.tile, wide[0][best] // self.tile

    def __call__(
        self, x: jax.Array, count: int, *, pixel_values: Any, image_sizes: Any = None, batch_num_images: Any = None
    ) -> tuple[jax.Array, jax.Array | int]:
        """From `x` `(images * tiles, side * side, embed)`: `(count, embed)`, and how many of them count."""
        if image_sizes is None:
            raise ValueError("pixel_values in tiles need image_sizes, the (height, width) of each image")
        images, tiles = pixel_values.shape[:2]
        side, base = self.side, self.side**2
        if x.shape[1] != base:
            raise ValueError(f"a tile has {x.shape[1]} features and is {side} by {side} patches")
        sizes = jnp.asarray(image_sizes, jnp.int32)
        rows, columns = self.grid(sizes)
        high, wide = rows * side, columns * side
        flat = sizes[:, 1] * high > wide * sizes[:, 0]  # flatter than its tiles: padded above and below
        top = jnp.where(flat, (high - sizes[:, 0] * wide // sizes[:, 1]) // 2, 0)
        left = jnp.where(flat, 0, (wide - sizes[:, 1] * high // sizes[:, 0]) // 2)
        own = jnp.stack([high - 2 * top, wide - 2 * left], axis=1)  # without the padding
        shown = own
        if self.most is not None:
            longest = max(map(max, self.resolutions)) // self.tile * side
            shown = jnp.asarray(shrunk(side, longest, self.most))[own[:, 0], own[:, 1]]
        line = shown[:, 1] + 1
        lengths = base + shown[:, 0] * line
        if batch_num_images is not None:
            several = jnp.asarray(batch_num_images, jnp.int32)
            row = jnp.searchsorted(jnp.cumsum(several), jnp.arange(images), side="right")
            lengths = jnp.where(several[row] == 1, lengths, base + 1)
        ends = jnp.cumsum(lengths)

        number = jnp.arange(count, dtype=jnp.int32)
        image = jnp.clip(jnp.searchsorted(ends, number, side="right"), 0, images - 1)
        inside = number - (ends - lengths)[image]
        row, column = jnp.divmod(inside - base, line[image])
        newline = (inside >= base) & ((column == line[image] - 1) | (lengths[image] == base + 1))
        rows_of = x.reshape(-1, x.shape[-1])

        def patch(y: jax.Array, x: jax.Array) -> jax.Array:
            """The features at a place of the tiles put together, or of the small image before them."""
            y, x = y + top[image], x + left[image]
            tile = jnp.where(inside < base, 0, 1 + (y // side) * columns[image] + x // side)
            at = jnp.where(inside < base, inside, y % side * side + x % side)
            return jnp.take(rows_of, (image * tiles + tile) * base + at, axis=0, mode="clip")

        if self.most is None:
            taken = patch(row, column)
        else:
            taken = between(patch, (row, column), own[image], shown[image])
        return jnp.where(newline[:, None], dense(self.image_newline)[None].astype(x.dtype), taken), ends[-1]


def between(patch: Any, place: tuple[jax.Array, jax.Array], own: jax.Array, shown: jax.Array) -> jax.Array:
    """What a grid of the size `own` `(n, 2)` says at `place` of it resampled to `shown`: bilinear, as torch does it."""
    ends, shares = [], []
    for axis in (0, 1):
        exact = (place[axis].astype(jnp.float32) + 0.5) * (own[:, axis] / shown[:, axis]) - 0.5
        exact = jnp.clip(exact, 0, own[:, axis] - 1)
        low = jnp.floor(exact).astype(jnp.int32)
        ends.append((low, jnp.minimum(low + 1, own[:, axis] - 1)))
        shares.append((exact - low)[:, None])
    mix = lambda a, b, share: a + (b - a) * share.astype(a.dtype)
    (top, bottom), (left, right) = ends
    above = mix(patch(top, left), patch(top, right), shares[1])
    return mix(above, mix(patch(bottom, left), patch(bottom, right), shares[1]), shares[0])


@slots.register(AnyResolution)
def _(pack: AnyResolution) -> dict[str, Slot]:
    return {"image_newline": Slot("other", ("embed",))}


class Frames(eqx.Module):
    """LLaVA-OneVision's videos: every frame at half its height and width, one `image_newline` behind a video. `token` stands for
    their features."""

    token: int = eqx.field(static=True)
    side: int = eqx.field(static=True)

    def __call__(self, x: jax.Array, image_newline: Weight, videos: int) -> jax.Array:
        """From `x` `(videos * frames, side * side, embed)`: `(features, embed)`."""
        half = -(-self.side // 2)
        small = jax.vmap(lambda x: resize_grid(x, 2 * (self.side,), 2 * (half,), method="bilinear"))(x)
        small = small.reshape(videos, -1, x.shape[-1])
        line = jnp.broadcast_to(dense(image_newline)[None, None].astype(x.dtype), (videos, 1, x.shape[-1]))
        return jnp.concatenate([small, line], axis=1).reshape(-1, x.shape[-1])


class RealImages(eqx.Module):
    """Idefics3's: every row of the batch has as many images, those of zeros being none. `one_stays`: where all are zeros the
    first of them is an image (SmolVLM)."""

    first: ClassVar[bool] = False
    one_stays: bool = eqx.field(static=True, default=False)

    def __call__(self, x: jax.Array, count: int, *, pixel_values: Any) -> tuple[jax.Array, jax.Array | int]:
        """From `x` `(rows * images, tokens, embed)`: `(count, embed)`, and how many of them count."""
        real = jnp.any(pixel_values != 0, axis=(2, 3, 4)).reshape(-1)
        if self.one_stays:
            real = real.at[0].set(real[0] | ~jnp.any(real))
        order = jnp.argsort(~real, stable=True)
        tokens = x.shape[1]
        number = jnp.arange(count, dtype=jnp.int32)
        image = jnp.take(order, number // tokens, mode="clip")
        taken = jnp.take(x.reshape(-1, x.shape[-1]), image * tokens + number % tokens, axis=0, mode="clip")
        return taken, jnp.sum(real) * tokens


class PatchSquares(eqx.Module):
    """Pixtral's: one row of the patches of images of any size, in squares of `merge` by `merge`, before they are projected.

    `patch` is the height and width of a patch in pixels. A row or column that fills no square is left out.
    """

    patch: tuple[int, int] = eqx.field(static=True)
    merge: int = eqx.field(static=True)
    first: ClassVar[bool] = True

    def __call__(
        self, x: jax.Array, count: int, *, pixel_values: Any, image_sizes: Any = None
    ) -> tuple[jax.Array, jax.Array | int]:
        """From `x` `(1, patches, embed)`: `(count, merge^2 * embed)`, a square's numbers of each channel side by side, and how
        many of them count."""
        if image_sizes is None:
            image_sizes = np.full((pixel_values.shape[0], 2), pixel_values.shape[-2:])
        grid = jnp.asarray(image_sizes, jnp.int32) // jnp.asarray(self.patch, jnp.int32)[None]
        sizes = jnp.prod(grid, axis=1)
        begins = jnp.cumsum(sizes) - sizes
        small = grid // self.merge
        at = patches(jnp.pad(small, ((0, 0), (1, 0)), constant_values=1), count)
        inner = np.arange(self.merge)
        row = (at.y * self.merge)[:, None, None] + inner[None, :, None]
        column = (at.x * self.merge)[:, None, None] + inner[None, None, :]
        number = begins[at.image][:, None, None] + row * grid[at.image, 1][:, None, None] + column
        taken = jnp.take(x[0], number.reshape(count, -1), axis=0, mode="clip")  # (count, merge^2, embed)
        return jnp.swapaxes(taken, 1, 2).reshape(count, -1), jnp.sum(jnp.prod(small, axis=1))


class PatchBlocks(eqx.Module):
    """LFM2-VL's: images of any shape, padding behind their patches, in blocks of `side` by `side` patches side by side, before
    they are projected. A row or column that fills no block is left out."""

    side: int = eqx.field(static=True)
    first: ClassVar[bool] = True

    def __call__(
        self, x: jax.Array, count: int, *, pixel_values: Any, spatial_shapes: Any = None
    ) -> tuple[jax.Array, jax.Array | int]:
        """From `x` `(images, patches, embed)`, `spatial_shapes` `(images, 2)` the rows and columns of each: `(count, side^2 *
        embed)`, a block's patches side by side, and how many of them count."""
        if spatial_shapes is None:
            raise ValueError("pixel_values in patches need spatial_shapes, the rows and columns of each image")
        grid = jnp.asarray(spatial_shapes, jnp.int32)
        small = grid // self.side
        at = patches(jnp.pad(small, ((0, 0), (1, 0)), constant_values=1), count)
        inner = np.arange(self.side)
        row = (at.y * self.side)[:, None, None] + inner[None, :, None]
        column = (at.x * self.side)[:, None, None] + inner[None, None, :]
        number = at.image[:, None, None] * x.shape[1] + row * grid[at.image, 1][:, None, None] + column
        taken = jnp.take(x.reshape(-1, x.shape[-1]), number.reshape(-1), axis=0, mode="clip")
        return taken.reshape(count, -1), jnp.sum(jnp.prod(small, axis=1))


def patches_seen(pixel_attention_mask: jax.Array, patch: int) -> jax.Array:
    """Which patches `(images, rows, columns)` have any pixel of an image, by the mask `(rows of the batch, images, height,
    width)`."""
    mask = jnp.asarray(pixel_attention_mask) != 0
    height, width = mask.shape[2] // patch, mask.shape[3] // patch
    mask = mask[:, :, : height * patch, : width * patch].reshape(-1, height, patch, width, patch)
    return jnp.any(mask, axis=(2, 4))
