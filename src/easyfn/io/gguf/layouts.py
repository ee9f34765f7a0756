"""Layouts that only `.gguf` files have: matrices that Hugging Face's files hold as one and llama.cpp as several."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...names.layout import Pieces, Shape
from ...names.part import Index


@dataclasses.dataclass(frozen=True)
class InTurns:
    """`parts` tensors whose entries along `axis` take turns in ours."""

    axis: int
    parts: int

    def number(self, shape: Shape) -> int:
        return self.parts

    def shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[: self.axis], shape[self.axis] // self.parts, *shape[self.axis + 1 :])] * self.parts

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        together = np.stack(parts, self.axis + 1)  # of packed rows, whose last axis is not that of `shape`
        return together.reshape(*parts[0].shape[: self.axis], -1, *parts[0].shape[self.axis + 1 :])

    def split(self, ours: Any) -> list[Any]:
        return [ours[self._every(n)] for n in range(self.parts)]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        asked = index[self.axis]
        for n in range(self.parts):
            first = (n - asked.start) % self.parts  # in `out`
            low, high = (asked.start + first) // self.parts, (asked.stop - n + self.parts - 1) // self.parts
            if low < high:
                theirs = (*index[: self.axis], slice(low, high), *index[self.axis + 1 :])
                yield n, theirs, out[self._every(first)]

    def _every(self, first: int) -> tuple[slice, ...]:
        return (*(slice(None),) * self.axis, slice(first, None, self.parts))


@dataclasses.dataclass(frozen=True)
class KeysAndValues:
    """`kv_b_proj` of latent attention, `(heads * (keys + values), rank)`: a tensor of the keys, turned, `(heads, rank, keys)`,
    and one of the values, `(heads, values, rank)`."""

    keys: int
    values: int

    def number(self, shape: Shape) -> int:
        return 2

    def shapes(self, shape: Shape) -> list[Shape]:
        heads = shape[0] // (self.keys + self.values)
        return [(heads, shape[1], self.keys), (heads, self.values, shape[1])]

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        return np.concatenate([parts[0].swapaxes(1, 2), parts[1]], axis=1).reshape(shape)

    def split(self, ours: Any) -> list[Any]:
        rows = ours.reshape(-1, self.keys + self.values, ours.shape[1])
        return [rows[:, : self.keys].swapaxes(1, 2), rows[:, self.keys :]]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        width, (rows, columns) = self.keys + self.values, index
        for head in range(rows.start // width, -(-rows.stop // width)):
            for number, (begin, size) in enumerate(((0, self.keys), (self.keys, self.values))):
                at = head * width + begin
                low, high = max(rows.start, at), min(rows.stop, at + size)
                if low < high:
                    view, here = out[low - rows.start : high - rows.start][None], slice(low - at, high - at)
                    one = slice(head, head + 1)
                    if number == 0:
                        yield 0, (one, columns, here), view.swapaxes(1, 2)
                    else:
                        yield 1, (one, here, columns), view


@dataclasses.dataclass(frozen=True)
class KindsApart:
    """Rows that ours has head by head, in pieces of `widths`: the file has `parts`, each of some kinds of pieces, and in it one
    kind of all heads after the other."""

    widths: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]

    def number(self, shape: Shape) -> int:
        return len(self.parts)

    def shapes(self, shape: Shape) -> list[Shape]:
        heads = shape[0] // sum(self.widths)
        return [(heads * sum(self.widths[kind] for kind in part), *shape[1:]) for part in self.parts]

    def join(self, parts: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
        heads, tail = shape[0] // sum(self.widths), parts[0].shape[1:]  # packed rows are of other lengths
        pieces: dict[int, np.ndarray] = {}
        for part, tensor in zip(self.parts, parts, strict=True):
            at = 0
            for kind in part:
                rows = heads * self.widths[kind]
                pieces[kind] = tensor[at : at + rows].reshape(heads, self.widths[kind], *tail)
                at += rows
        return np.concatenate([pieces[kind] for kind in sorted(pieces)], axis=1).reshape(shape[0], *tail)

    def split(self, ours: Any) -> list[Any]:
        tail, ends = ours.shape[1:], (0, *itertools.accumulate(self.widths))
        rows = ours.reshape(-1, ends[-1], *tail)
        kinds = [rows[:, low:high].reshape(-1, *tail) for low, high in itertools.pairwise(ends)]
        return [np.concatenate([np.asarray(kinds[kind]) for kind in part]) for part in self.parts]

    def cut(self, out: np.ndarray, index: Index, shape: Shape) -> Pieces:
        heads, whole, asked = shape[0] // sum(self.widths), sum(self.widths), index[0]
        for number, part in enumerate(self.parts):
            begin = 0
            for kind in part:
                width = self.widths[kind]
                for head in range(asked.start // whole, -(-asked.stop // whole)):
                    at = head * whole + sum(self.widths[:kind])
                    low, high = max(asked.start, at), min(asked.stop, at + width)
                    if low < high:
                        here = begin + head * width + low - at
                        yield (
                            number,
                            (slice(here, here + high - low), *index[1:]),
                            out[low - asked.start : high - asked.start],
                        )
                begin += heads * width
