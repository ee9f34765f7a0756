"""One weight of a slot from several matrices of a file: experts one by one, the parts of a fused matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .._weight import shape_of
from ..io.names import Tensors


def join(source: Tensors, weights: Sequence[Any]) -> Any:
    """The weight of the slot `source` from those of its matrices, `(out, in)` each, whose arrays are NumPy's.

    A matrix that a plain file holds as `(in, out)` is `(out, in)` in a quantized one. Raises `ValueError` for matrices
    that do not join: along the input axis, of different formats, or with columns in different orders; and for a weight
    of another shape than the model has.
    """
    if source.kind in ("same", "transposed"):
        weight = weights[0]
    elif source.kind == "experts":
        per = len(weights) // source.shape[0]
        each = [_rows(source, weights[e * per : (e + 1) * per], source.axis - 1) for e in range(source.shape[0])]
        _alike(source, each)
        weight = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    else:
        weight = _rows(source, weights, source.axis)
    if shape_of(weight) != tuple(source.shape):
        raise ValueError(f"{source.path}: the model has {source.shape}, the quantized weight is {shape_of(weight)}")
    return weight


def _rows(source: Tensors, weights: Sequence[Any], axis: int) -> Any:
    if len(weights) == 1:
        return weights[0]
    _alike(source, weights)
    if axis != 0:
        raise ValueError(f"{source.path}: it joins matrices along their input, across which no groups of codes can go")

    def one(*parts: np.ndarray) -> np.ndarray:
        if parts[0].shape[0] != 1 or all(w.shape[0] == 1 for w in leaves):
            return np.concatenate(parts)
        if any(not np.array_equal(part, parts[0]) for part in parts[1:]):  # an order or a scaling of the columns
            raise ValueError(f"{source.path}: it joins matrices whose columns are in different orders (act-order)")
        return parts[0]

    leaves = jax.tree.leaves(weights[0])
    return jax.tree.map(one, *weights)


def _alike(source: Tensors, weights: Sequence[Any]) -> None:
    if len({jax.tree.structure(w) for w in weights}) > 1:
        raise ValueError(f"{source.path}: it joins {len(weights)} matrices that are quantized in different formats")
