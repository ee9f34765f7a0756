"""Layouts: how the tensors of a file make up one of our arrays, as small classes that nest.

Each says both directions, and how to take a part: `Stacked(Joined(0, 2, Transposed()))` is one matrix per expert, of two that
the file holds side by side as `(in, out)`. `shape` is always that of our array.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .part import Index

Shape = tuple[int, ...]
Pieces = Iterator[tuple[int, Index, np.ndarray]]


@runtime_checkable
class Layout(Protocol):
    """What every layout can do."""

    def number(self, shape: Shape) -> int:
        """How many tensors of the file there are."""

    def shapes(self, shape: Shape) -> list[Shape]:
        """The shape of each tensor in the file."""

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        """Our array from the tensors of the file."""

    def split(self, ours: Any) -> list[Any]:
        """The tensors of the file from our array, NumPy's or JAX's: the inverse of `join`."""

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        """What of the file belongs into `out`, the part of our array at `index`: for every tensor that has any of it, its
        number, which part of it, and where in `out` that goes (a view)."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """One tensor, as it is."""

    def number(self, shape: Shape) -> int:
        return 1

    def shapes(self, shape: Shape) -> list[Shape]:
        return [shape]

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return parts[0]

    def split(self, ours: Any) -> list[Any]:
        return [ours]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        yield 0, index, out


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The last two axes change places: the file holds `(in, out)`."""

    of: Layout = Plain()

    def number(self, shape: Shape) -> int:
        return self.of.number(_swapped(shape))

    def shapes(self, shape: Shape) -> list[Shape]:
        return self.of.shapes(_swapped(shape))

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.swapaxes(self.of.join(parts, _swapped(shape)), -1, -2)

    def split(self, ours: Any) -> list[Any]:
        return self.of.split(ours.swapaxes(-1, -2))

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        return self.of.cut(np.swapaxes(out, -1, -2), _swapped(index), _swapped(shape))


@dataclasses.dataclass(frozen=True)
class Turned(Plain):
    """One tensor, as it is; older files have its last two axes in each other's place, as its shape tells."""


@dataclasses.dataclass(frozen=True)
class Joined:
    """`parts` arrays of the same shape, one after the other along `axis`."""

    axis: int
    parts: int
    of: Layout = Plain()

    def _part(self, shape: Shape) -> Shape:
        return (*shape[: self.axis], shape[self.axis] // self.parts, *shape[self.axis + 1 :])

    def number(self, shape: Shape) -> int:
        return self.parts * self.of.number(self._part(shape))

    def shapes(self, shape: Shape) -> list[Shape]:
        return self.of.shapes(self._part(shape)) * self.parts

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.concatenate([self.of.join(own, self._part(shape)) for own in _groups(parts, self.parts)], self.axis)

    def split(self, ours: Any) -> list[Any]:
        width = ours.shape[self.axis] // self.parts
        before = (slice(None),) * self.axis
        each = [ours[(*before, slice(n * width, (n + 1) * width))] for n in range(self.parts)]
        return [tensor for one in each for tensor in self.of.split(one)]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        part, asked = self._part(shape), index[self.axis]
        width, per = part[self.axis], self.of.number(part)
        for n in range(self.parts):
            low, high = max(asked.start, n * width), min(asked.stop, (n + 1) * width)
            if low < high:
                view = out[(*(slice(None),) * self.axis, slice(low - asked.start, high - asked.start))]
                theirs = (*index[: self.axis], slice(low - n * width, high - n * width), *index[self.axis + 1 :])
                for number, where, into in self.of.cut(view, theirs, part):
                    yield n * per + number, where, into


@dataclasses.dataclass(frozen=True)
class Beside:
    """Tensors of these `widths`, one after the other along `axis`."""

    axis: int
    widths: tuple[int, ...]

    def _ends(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise((0, *itertools.accumulate(self.widths))))

    def number(self, shape: Shape) -> int:
        return len(self.widths)

    def shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[: self.axis], width, *shape[self.axis + 1 :]) for width in self.widths]

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.concatenate(parts, self.axis)

    def split(self, ours: Any) -> list[Any]:
        return [ours[(*(slice(None),) * self.axis, slice(low, high))] for low, high in self._ends()]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        asked = index[self.axis]
        for n, (first, last) in enumerate(self._ends()):
            low, high = max(asked.start, first), min(asked.stop, last)
            if low < high:
                view = out[(*(slice(None),) * self.axis, slice(low - asked.start, high - asked.start))]
                yield n, (*index[: self.axis], slice(low - first, high - first), *index[self.axis + 1 :]), view


@dataclasses.dataclass(frozen=True)
class Stacked:
    """One array per entry of our first axis, which the file does not have: a tensor or more for each expert."""

    of: Layout = Plain()

    def number(self, shape: Shape) -> int:
        return shape[0] * self.of.number(shape[1:])

    def shapes(self, shape: Shape) -> list[Shape]:
        return self.of.shapes(shape[1:]) * shape[0]

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.stack([self.of.join(own, shape[1:]) for own in _groups(parts, shape[0])])

    def split(self, ours: Any) -> list[Any]:
        return [tensor for e in range(ours.shape[0]) for tensor in self.of.split(ours[e])]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        per = self.of.number(shape[1:])
        for row, e in enumerate(range(index[0].start, index[0].stop)):
            for number, where, into in self.of.cut(out[row, ...], index[1:], shape[1:]):
                yield e * per + number, where, into


@dataclasses.dataclass(frozen=True)
class StackedModules(Stacked):
    """As `Stacked`, where transformers' modules have the entries one by one, too (Switch Transformers)."""


@dataclasses.dataclass(frozen=True)
class StackedInFront(Stacked):
    """As `Stacked`, where the file has `idle` more entries behind ours that nothing reads: written as zeros, and a file may
    lack them. LongCat Flash has them for the experts that only hand on what they are given."""

    idle: int = 0

    def number(self, shape: Shape) -> int:
        return super().number(shape) + self.idle * self.of.number(shape[1:])

    def shapes(self, shape: Shape) -> list[Shape]:
        return super().shapes(shape) + self.of.shapes(shape[1:]) * self.idle

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return super().join(parts[: super().number(shape)], shape)

    def split(self, ours: Any) -> list[Any]:
        nothing = [np.zeros_like(one) for one in self.of.split(ours[0])] if self.idle else []
        return super().split(ours) + nothing * self.idle


@dataclasses.dataclass(frozen=True)
class Flattened:
    """One tensor in which our first two axes are one: the rows of all experts, one expert after the other."""

    def number(self, shape: Shape) -> int:
        return 1

    def shapes(self, shape: Shape) -> list[Shape]:
        return [(shape[0] * shape[1], *shape[2:])]

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return parts[0].reshape(shape)

    def split(self, ours: Any) -> list[Any]:
        return [ours.reshape(-1, *ours.shape[2:])]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        for row, e in enumerate(range(index[0].start, index[0].stop)):
            rows = slice(e * shape[1] + index[1].start, e * shape[1] + index[1].stop)
            yield 0, (rows, *index[2:]), out[row, ...]


def in_rows(layout: Layout) -> bool:
    """Whether a layout has `Flattened` in it."""
    inner = getattr(layout, "of", None)
    return isinstance(layout, Flattened) or (inner is not None and in_rows(inner))


def _swapped(axes: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*axes[:-2], axes[-1], axes[-2])


def _groups(parts: Sequence[Any], number: int) -> list[Sequence[Any]]:
    per = len(parts) // number
    return [parts[n * per : (n + 1) * per] for n in range(number)]
