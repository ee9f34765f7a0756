"""One weight of a slot from several matrices of a file, and back: experts one by one or row after row, the parts of a fused
matrix."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import shape_of
from ..names.layout import in_rows
from ..names.rules import Tensors
from .fp8 import FP8, spread
from .micro import Micro
from .product import replace


def quantized(source: Tensors, held: Callable[[str], Any]) -> bool:
    """Whether a file holds the matrices of a slot quantized: `held(name)` says it of each. Some and not all are an
    error."""
    found = [bool(held(name)) for name in source.names]
    if any(found) and not all(found):
        raise ValueError(f"{source.path}: some of {', '.join(source.names[:4])}, ... are quantized and some are not")
    return all(found)


def join(source: Tensors, weights: Sequence[Any]) -> Any:
    """The weight of the slot `source` from those of its matrices, `(out, in)` each, whose arrays are NumPy's.

    A matrix that a plain file holds as `(in, out)` is `(out, in)` in a quantized one. Raises `ValueError` for matrices
    that do not join: along the input axis, of different formats, or with columns in different orders; and for a weight
    of another shape than the model has.
    """
    if source.plain or source.transposed:
        weight = weights[0]
        if len(source.shape) == 3 and len(shape_of(weight)) == 2:
            weight = _each(source, weight)
    elif in_rows(source.layout):
        _alike(source, weights)
        weight = jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *[_each(source, w) for w in weights])
    elif source.experts:
        per = source.together
        each = [_rows(source, weights[e * per : (e + 1) * per], source.axis - 1) for e in range(source.shape[0])]
        _alike(source, each)
        weight = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    else:
        weight = _rows(source, weights, source.axis)
    if shape_of(weight) != tuple(source.shape):
        raise ValueError(f"{source.path}: the model has {source.shape}, the quantized weight is {shape_of(weight)}")
    return weight


def cut(source: Tensors, weight: Any) -> list[Any]:
    """The matrices of a weight, one for each of `source.names`: the inverse of `join`, for NumPy and JAX arrays.

    An array with a single row belongs to all the pieces of a matrix. Raises `ValueError` for a weight that the file holds
    in pieces along the input axis, or in pieces that its arrays do not divide into.
    """
    if source.plain or source.transposed:
        return [weight]
    if source.experts:
        each = [jax.tree.map(lambda leaf, e=e: leaf[e], weight) for e in range(source.shape[0])]
        return [piece for one in each for piece in _pieces(source, one, source.together, source.axis - 1)]
    if in_rows(source.layout):
        each = [jax.tree.map(lambda leaf, e=e: leaf[e], weight) for e in range(source.shape[0])]
        cuts = [_pieces(source, one, len(source.names), 0) for one in each]
        return [_after_another(source, own) for own in zip(*cuts, strict=True)]
    return _pieces(source, weight, len(source.names), source.axis)


def flat(source: Tensors, weight: Any) -> Any:
    """A weight as one matrix: of experts `(experts, out, in)` the rows, one expert after the other, as `join` takes them.

    For layouts of matrices, where a plain file has all experts in one tensor.
    """
    if len(shape_of(weight)) < 3:
        return weight
    return _after_another(source, [jax.tree.map(lambda leaf, e=e: leaf[e], weight) for e in range(source.shape[0])])


def _after_another(source: Tensors, weights: Sequence[Any]) -> Any:
    """The matrices of all experts as one; what a row does not have for itself must be the same in all."""
    rows = shape_of(weights[0])[0]
    crossed = isinstance(weights[0], FP8) and weights[0].block[0] > 1 and rows % weights[0].block[0] != 0
    first, *rest = jax.tree.leaves(weights[0]), *map(jax.tree.leaves, weights[1:])
    for n, leaf in enumerate(first):
        own = leaf.shape[0] > 1 or rows == 1
        if crossed or not (own or all(np.array_equal(other[n], leaf) for other in rest)):
            raise ValueError(
                f"{source.path}: the file holds the rows of all experts in one matrix, and scales belong to several rows, or "
                "to no row; use ef.dequantize, or quantize it to 8bit"
            )

    def one(*leaves: Any) -> Any:
        if leaves[0].shape[0] == 1 < rows:
            return leaves[0]
        return (np if isinstance(leaves[0], np.ndarray) else jnp).concatenate(leaves)

    return jax.tree.map(one, *weights)


def _each(source: Tensors, weight: Any) -> Any:
    """The inverse of `flat`, of NumPy's arrays: a single row belongs to every expert."""
    experts, rows = source.shape[0], shape_of(weight)[0]
    if rows % experts:
        raise ValueError(f"{source.path}: {rows} rows are not those of {experts} experts")
    one = rows > 1
    each = lambda leaf: (
        np.broadcast_to(leaf, (experts, *leaf.shape))
        if one and leaf.shape[0] == 1
        else leaf.reshape(experts, -1, *leaf.shape[1:])
    )
    return jax.tree.map(each, weight)


def _pieces(source: Tensors, weight: Any, count: int, axis: int) -> list[Any]:
    if count == 1:
        return [weight]
    rows = shape_of(weight)[0] // count
    across = isinstance(weight, FP8) and weight.block[0] > 1 and rows % weight.block[0] != 0
    if axis != 0 or across or any(leaf.shape[0] % count and leaf.shape[0] > 1 for leaf in jax.tree.leaves(weight)):
        raise ValueError(
            f"{source.path}: the file holds it in {count} pieces, and scales belong to several of them; use ef.dequantize"
        )

    def one(leaf: Any, n: int) -> Any:
        height = leaf.shape[0] // count
        return leaf[n * height : (n + 1) * height] if height else leaf  # a single row belongs to all of them

    return [jax.tree.map(lambda leaf, n=n: one(leaf, n), weight) for n in range(count)]


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


def by_row(weights: Sequence[Any], each: int) -> list[Any]:
    """The same weights, with scales for every row where `each` neighbours cannot be joined otherwise.

    What is one number for a whole matrix may differ between them, and a block of rows may reach across.
    """
    groups = [weights[i : i + each] for i in range(0, len(weights), each)]
    if each == 1 or all(map(_joins, groups)):
        return list(weights)
    return [_spread(w) for w in weights]


def _joins(group: Sequence[Any]) -> bool:
    for w in group:
        if isinstance(w, FP8) and w.block[0] == 0 and not np.array_equal(w.scales, group[0].scales):
            return False
        if isinstance(w, FP8) and w.block[0] > 1 and w.codes.shape[0] % w.block[0]:
            return False
        if isinstance(w, Micro) and w.divisor is not None and not np.array_equal(w.divisor, group[0].divisor):
            return False
    return True


def _spread(w: Any) -> Any:
    rows = w.codes.shape[0]
    if isinstance(w, Micro):
        return replace(w, divisor=np.broadcast_to(w.divisor, (rows, 1)))
    scales = np.asarray(spread(w.scales, (w.block[0], 0), w.codes.shape))
    return replace(w, scales=np.broadcast_to(scales, (rows, scales.shape[1])), block=(1, w.block[1]))


def dense_dtype(header: Mapping[str, Any]) -> np.dtype[Any] | None:
    """The dtype of most of what a file holds unquantized: that of the weights that its codes stand for."""
    counts: Counter[Any] = Counter()
    for name, info in header.items():
        if jnp.issubdtype(info.dtype, jnp.floating) and np.dtype(info.dtype).itemsize > 1 and "scale" not in name:
            counts[np.dtype(info.dtype)] += math.prod(info.shape)
    return counts.most_common(1)[0][0] if counts else None
