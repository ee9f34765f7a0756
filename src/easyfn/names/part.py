"""A part of a tensor: which bytes of the file it is, and how they are read without the rest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Index = tuple[slice, ...]


class Runs(NamedTuple):
    """Bytes that lie together both in the file and in a part of a tensor, all equally long: run `n` begins at byte
    `starts[n]` of the tensor and at byte `n * length` of the part."""

    starts: np.ndarray
    length: int


def whole(shape: Sequence[int]) -> Index:
    """The index of all of a tensor."""
    return tuple(slice(0, size) for size in shape)


def bounds(index: Sequence[slice], shape: Sequence[int]) -> Index:
    """An index with its numbers filled in, one slice for each axis, as JAX gives it for a device: steps of 1."""
    given = (*index, *(slice(None),) * (len(shape) - len(index)))
    return tuple(slice(*s.indices(size)[:2]) for s, size in zip(given, shape, strict=True))


def shape_at(index: Index) -> tuple[int, ...]:
    return tuple(max(0, s.stop - s.start) for s in index)


def runs(shape: Sequence[int], itemsize: int, index: Index) -> Runs:
    """The bytes of `tensor[index]` in the order of the part: as few runs as there are, the longest that lie together."""
    part = shape_at(index)
    if 0 in part:
        return Runs(np.zeros(0, np.int64), 0)
    strides = [math.prod(shape[n + 1 :]) * itemsize for n in range(len(shape))]
    # The axes after `cut` are whole: a run goes through them, and through what is taken of `cut`.
    cut = max((n for n, size in enumerate(shape) if part[n] != size), default=0)
    starts = np.array([index[cut].start * strides[cut] if shape else 0], np.int64)
    for n in range(cut):
        starts = (starts[:, None] + np.arange(index[n].start, index[n].stop)[None] * strides[n]).reshape(-1)
    return Runs(starts, part[cut] * strides[cut] if shape else itemsize)


def joined(found: Runs, gap: int) -> list[slice]:
    """The runs in groups that are read at once, because no more than `gap` bytes lie between them."""
    ends = np.flatnonzero(np.diff(found.starts) - found.length > gap) + 1
    bounds = [0, *ends.tolist(), len(found.starts)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds) if a < b]
