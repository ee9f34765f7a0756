"""Quantizing while loading: a tensor is read and encoded a few rows at a time, so that it is never whole in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..names.rules import Tensors
from .checkpoint import Source
from .safetensors import aligned

Read = Callable[[int, int], np.ndarray]  # (first row, row after the last) -> those rows of our array
Encode = Callable[[Any], Any]

SMALLEST, LARGEST = 2**18, 2**23  # bytes of a piece


def encode_into(out: list[np.ndarray], t: Tensors, dtype: Any, read: Read, encode: Encode) -> None:
    """Fills `out`, the arrays of a weight format in their order, with what `encode` makes of a dense array.

    The pieces are rows of a matrix, or whole experts. A format one of whose arrays has no row for every row of the matrix
    (a scale for all of it) needs the matrix whole.
    """
    rows = _rows_at_once(t.shape, dtype, encode)
    for start in range(0, t.shape[0], rows):
        end = min(start + rows, t.shape[0])
        piece = jax.tree.leaves(encode(read(start, end)))
        for whole, part in zip(out, piece, strict=True):
            if rows == t.shape[0]:
                np.copyto(whole, part)
            else:
                np.copyto(whole[start:end], part)


def _rows_at_once(shape: tuple[int, ...], dtype: Any, encode: Encode) -> int:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    target = max(1, min(LARGEST, max(SMALLEST, size // 64)) * shape[0] // size)
    if target >= shape[0]:
        return shape[0]
    # Pieces of one size compile once.
    rows = next((n for n in range(target, target // 4, -1) if shape[0] % n == 0), target)
    whole, part = (jax.eval_shape(encode, jax.ShapeDtypeStruct((n, *shape[1:]), dtype)) for n in (shape[0], rows))
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True)
    if jax.tree.structure(whole) != jax.tree.structure(part):
        return shape[0]
    by_rows = all((a.shape, b.shape) == ((shape[0], *a.shape[1:]), (rows, *a.shape[1:])) for a, b in pairs)
    return rows if by_rows else shape[0]


def reader(t: Tensors, dtype: Any, source: Source, whole: Callable[[Tensors], Any], some: Callable[..., None]) -> Read:
    """How rows of an array are read: from the file where they lie together, else out of the whole array.

    `whole(t)` reads all of it; `some(view, source, name, row)` fills a view with the rows of a tensor from `row` on.
    """
    if t.plain and source.value(t.names[0]) is None:

        def rows(start: int, end: int) -> np.ndarray:
            out = aligned((end - start, *t.shape[1:]), dtype)
            some(out, source, t.names[0], start)
            return out

        return rows
    if t.experts:
        per = t.together
        return lambda start, end: whole(
            t._replace(names=t.names[start * per : end * per], shape=(end - start, *t.shape[1:]))
        )
    kept: list[Any] = []

    def cut(start: int, end: int) -> np.ndarray:
        if not kept:
            kept.append(np.asarray(whole(t)))
        return kept[0][start:end]

    return cut
