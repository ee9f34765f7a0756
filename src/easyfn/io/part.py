"""A part of a tensor: which bytes of the file it is, and how they are read without the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Index = tuple[slice, ...]


class Run(NamedTuple):
    """Bytes that lie together both in the file, from `start` of the tensor, and in the part, from `at` of it."""

    start: int
    at: int
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


def runs(shape: Sequence[int], itemsize: int, index: Index) -> Iterator[Run]:
    """The bytes of `tensor[index]` in the order of the part: as few runs as there are, the longest that lie together."""
    part = shape_at(index)
    if 0 in part:
        return
    # The axes after `cut` are whole: a run goes through them, and through what is taken of `cut`.
    cut = max((n for n, size in enumerate(shape) if part[n] != size), default=0)
    inner = math.prod(shape[cut + 1 :]) * itemsize
    length = (part[cut] if part else 1) * inner
    first = index[cut].start * inner if part else 0
    strides = [math.prod(shape[n + 1 :]) * itemsize for n in range(cut)]
    for count, place in enumerate(np.ndindex(*part[:cut])):
        start = sum((s.start + i) * stride for s, i, stride in zip(index, place, strides, strict=False))
        yield Run(first + start, count * length, length)


def joined(found: Sequence[Run], gap: int) -> list[list[Run]]:
    """Runs in groups that are read at once, because no more than `gap` bytes lie between them."""
    groups: list[list[Run]] = []
    for run in found:
        if groups and run.start - (groups[-1][-1].start + groups[-1][-1].length) <= gap:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups
