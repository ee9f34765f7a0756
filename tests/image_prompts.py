"""Prompts with images as transformers' processors make them, for the cases of `tests/families`: two rows, padded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

IMAGE, VIDEO = 7, 8  # the tokens that stand for features, in all cases
BREAK = 5  # between the lines of an image of Pixtral's
Prompt = Callable[[str], dict[str, np.ndarray]]


def words(rng: np.random.RandomState, count: int) -> list[int]:
    return [*rng.randint(10, 90, count)]


def padded(rows: list[list[int]], pad: str) -> dict[str, np.ndarray]:
    """Ids and mask of rows, padded on one side."""
    width = max(map(len, rows))
    ids, mask = np.zeros((2, width), int), np.zeros((2, width), int)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if pad == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def squares(count: int, size: int, *, images: tuple[int, int] = (1, 1), types: str | None = None) -> Prompt:
    """Images of `size`, `count` tokens each, so many in each row. `types`: what `token_type_ids` say, the images (1) or what
    follows the prompt (1), the last two tokens."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        first, second = images
        image = [*[IMAGE] * count]
        apart = [*image, *words(rng, 2)]
        rows = [
            [*words(rng, 3), *apart * (first - 1), *image, *words(rng, 5)],
            [*words(rng, 3), *apart * (second - 1), *image, *words(rng, 2)],
        ]
        found = padded(rows, pad)
        found["pixel_values"] = rng.randn(first + second, 3, size, size).astype(np.float32)
        if types == "images":
            found["token_type_ids"] = (found["input_ids"] == IMAGE).astype(int)
        elif types == "prefix":
            seen = found["attention_mask"]
            found["token_type_ids"] = (seen * (seen[:, ::-1].cumsum(1)[:, ::-1] <= 2)).astype(int)
        return found

    return make


def grids(framed: bool = False, videos: int | None = VIDEO) -> Prompt:
    """Two images and a video in the first row, an image in the second, each of its own size, patches of 4 x 4, merged in
    squares. `framed`: text between the frames of the video, whose token is `videos`; where that is an image's the video is
    alone, and without one (`None`) there is none."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        stills, moving = np.array([[1, 4, 6], [1, 8, 4], [1, 6, 10]]), np.array([[3, 4, 4]])
        only = videos == IMAGE
        places = lambda token, grid: [5, *[token] * int(grid.prod() // 4), 6]
        image = lambda grid: words(rng, 3) if only else places(IMAGE, grid)
        first = [*words(rng, 3), *image(stills[0]), *words(rng, 2)]
        video: list[int] = []
        if videos is not None:
            frame = [*words(rng, 2), *places(VIDEO, moving[0] // np.array([3, 1, 1]))]
            video = [*frame, *frame, *frame] if framed else places(VIDEO, moving[0])
        rows = [
            [*first, *video, *image(stills[1]), *words(rng, 4)],
            [*words(rng, 1), *image(stills[2]), *words(rng, 5)],
        ]
        pixels = lambda grid: rng.randn(grid.prod(1).sum(), 3 * 2 * 4 * 4).astype(np.float32)
        found: dict[str, Any] = padded(rows, pad)
        ids = found["input_ids"]
        found["mm_token_type_ids"] = np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0))
        if not only:
            found |= {"pixel_values": pixels(stills), "image_grid_thw": stills}
        if videos is not None:
            found |= {"pixel_values_videos": pixels(moving), "video_grid_thw": moving}
            found["input_ids"] = np.where(ids == VIDEO, videos, ids)
        return found

    return make


def tiles(
    sizes: np.ndarray, pinpoints: list[list[int]], tile: int, side: int, *, most: int | None = None, frames: int = 0
) -> Prompt:
    """Images of `sizes` in tiles, two in the first row and one in the second, as many tokens as LLaVA-NeXT's processor counts.
    With `most`, LLaVA-OneVision's: those of the first row are not in tiles, and a video of so many `frames` is in the second."""

    def count(height: int, width: int, best: tuple[int, int]) -> int:
        high, wide = (n // tile * side for n in best)
        if width / height > wide / high:
            high -= (high - int(round(height * wide / width, 7))) // 2 * 2
        else:
            wide -= (wide - int(round(width * high / height, 7))) // 2 * 2
        if most is not None and (ratio := math.sqrt(high * wide / (most * side**2))) > 1.1:
            high, wide = int(high // ratio), int(wide // ratio)
        return side**2 + high * (wide + 1)

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        from transformers.image_processing_utils import select_best_resolution

        rng = np.random.RandomState(0)
        best = [select_best_resolution(tuple(size), pinpoints) for size in sizes.tolist()]
        first, second, third = (count(*size, b) for size, b in zip(sizes.tolist(), best, strict=True))
        if most is not None:
            first = second = side**2 + 1
        video = [*[VIDEO] * (frames * math.ceil(side / 2) ** 2 + 1), *words(rng, 2)] if frames else []
        rows = [
            [*words(rng, 2), *[IMAGE] * first, *words(rng, 2), *[IMAGE] * second, *words(rng, 4)],
            [*words(rng, 1), *video, *[IMAGE] * third, *words(rng, 3)],
        ]
        pieces = [1 + h * w // tile**2 for h, w in best]
        if most is not None:
            pieces[:2] = [1, 1]
        pixels = rng.randn(len(sizes), max(pieces), 3, tile, tile).astype(np.float32)
        for image, real in enumerate(pieces):
            pixels[image, real:] = 0
        more = {} if most is None else {"batch_num_images": np.array([2, 1])}
        if frames:
            more["pixel_values_videos"] = rng.randn(1, frames, 3, tile, tile).astype(np.float32)
        return {**padded(rows, pad), "pixel_values": pixels, "image_sizes": sizes, **more}

    return make


def masked(count: int, size: int, patch: int) -> Prompt:
    """Two images in the first row, one in the second, whose other is zeros; `count` tokens each, and of two of them a part is
    padding."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        image = [*[IMAGE] * count]
        rows = [
            [*words(rng, 2), *image, *words(rng, 2), *image, *words(rng, 4)],
            [*words(rng, 1), *image, *words(rng, 3)],
        ]
        pixels, mask = rng.randn(2, 2, 3, size, size).astype(np.float32), np.ones((2, 2, size, size), int)
        mask[0, 1, size - patch - 3 :] = 0  # three pixels of a row of patches are seen
        mask[1, 0, :, size - 2 * patch :] = 0
        pixels *= mask[:, :, None]
        pixels[1, 1], mask[1, 1] = 0, 0
        return {**padded(rows, pad), "pixel_values": pixels.astype(np.float32), "pixel_attention_mask": mask}

    return make


def patches(patch: int, kernel: int) -> Prompt:
    """Two images in the first row, a video of two frames in the second, their patches in rows with places, as Gemma 4's
    processor puts them out."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        most = 24

        def places(grids: list[tuple[int, int]]) -> np.ndarray:
            found = np.full((len(grids), most, 2), -1)
            for i, (height, width) in enumerate(grids):
                down, across = np.mgrid[:height, :width]
                found[i, : height * width] = np.stack([across, down], -1).reshape(-1, 2)
            return found

        shapes, frames = [(4, 6), (6, 2)], [(4, 4), (4, 4)]
        count = lambda grid: grid[0] * grid[1] // kernel**2
        rows = [
            [*words(rng, 2), *[IMAGE] * count(shapes[0]), *words(rng, 2), *[IMAGE] * count(shapes[1]), *words(rng, 4)],
            [*words(rng, 1), *[6, *[VIDEO] * count(frames[0])] * 2, *words(rng, 3)],
        ]
        found: dict[str, Any] = padded(rows, pad)
        ids = found["input_ids"]
        images, videos = places(shapes), places(frames)
        pixels = lambda at: (rng.rand(len(at), most, 3 * patch**2) * (at >= 0).all(-1)[..., None]).astype(np.float32)
        return {
            **found,
            "pixel_values": pixels(images),
            "image_position_ids": images,
            "pixel_values_videos": pixels(videos),
            "video_position_ids": videos,
            "num_frames_per_video": np.array([2]),
            "mm_token_type_ids": np.where(ids == IMAGE, 1, np.where(ids == VIDEO, 2, 0)),
        }

    return make


def shapes(sizes: np.ndarray, patch: int, block: int) -> Prompt:
    """Images of `sizes` `(rows, columns)` in patches, two in the first row and one in the second, padding behind them, a token
    for each block of `block` by `block` patches, as LFM2-VL's processor puts them out."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        first, second, third = ([*[IMAGE] * count] for count in (sizes // block).prod(axis=1))
        rows = [
            [*words(rng, 2), *first, *words(rng, 2), *second, *words(rng, 4)],
            [*words(rng, 1), *third, *words(rng, 3)],
        ]
        real = np.arange(sizes.prod(axis=1).max() + 2)[None] < sizes.prod(axis=1)[:, None]
        pixels = rng.randn(*real.shape, 3 * patch**2) * real[..., None]
        more = {"pixel_values": pixels.astype(np.float32), "pixel_attention_mask": real.astype(int)}
        return {**padded(rows, pad), **more, "spatial_shapes": sizes}

    return make


def crossed(tiles: int, size: int) -> Prompt:
    """Two images in the first row, one in the second, in tiles; tokens before an image see none, those after it that one."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        rows = [[*words(rng, 2), IMAGE, *words(rng, 3), IMAGE, *words(rng, 5)], [IMAGE, *words(rng, 6)]]
        found: dict[str, Any] = padded(rows, pad)
        ids, real = found["input_ids"], np.array([[2, 3], [1, 0]])  # tiles of each image
        mask = np.arange(tiles)[None, None] < np.maximum(real, 1)[..., None]
        which = (ids == IMAGE).cumsum(1)[:, :, None] - 1 == np.arange(2)[None, None]
        which = which & (found["attention_mask"] > 0)[:, :, None]
        sees = which[..., None] & (np.arange(tiles)[None, None] < real[..., None])[:, None]
        pixels = (
            rng.randn(2, 2, tiles, 3, size, size)
            * (np.arange(tiles)[None, None] < real[..., None])[..., None, None, None]
        )
        return {
            **found,
            "pixel_values": pixels.astype(np.float32),
            "aspect_ratio_ids": np.array([[2, 4], [1, 0]]),
            "aspect_ratio_mask": mask.astype(int),
            "cross_attention_mask": sees.astype(int),
        }

    return make


def sized(sizes: np.ndarray, cell: int) -> Prompt:
    """Images of `sizes` `(height, width)`, two in the first row and one in the second, padded to the largest, with a token for
    each square of `cell` pixels and another between its rows, as Pixtral's processor puts them out."""

    def make(pad: str = "left") -> dict[str, np.ndarray]:
        rng = np.random.RandomState(0)
        image = lambda size: [*[*[IMAGE] * (size[1] // cell), BREAK] * (size[0] // cell)]
        first, second, third = (image(size) for size in sizes.tolist())
        rows = [
            [*words(rng, 2), *first, *words(rng, 2), *second, *words(rng, 4)],
            [*words(rng, 1), *third, *words(rng, 3)],
        ]
        pixels = np.zeros((3, 3, *sizes.max(0)), np.float32)
        for place, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            place[:, :height, :width] = rng.randn(3, height, width)
        return {**padded(rows, pad), "pixel_values": pixels, "image_sizes": sizes}

    return make
