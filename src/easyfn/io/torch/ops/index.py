"""Operators that look up, write at, sort or count by indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ....core.weight import take
from .shape import to
from .table import axis_of, default_of, kind, torch_op

op = torch_op.register


@op("aten.embedding.default", weights=(0,))
def embedding(
    weight: Any, ids: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Any:
    """The row of `padding_idx` does not learn from being looked up; by frequency, a row learns the mean of its uses."""
    rows = take(weight, ids)
    if scale_grad_by_freq:
        flat, kept = ids.reshape(-1), lax.stop_gradient(rows)
        uses = jnp.searchsorted(jnp.sort(flat), flat, side="right") - jnp.searchsorted(jnp.sort(flat), flat)
        rows = kept + (rows - kept) / uses.reshape(*ids.shape, 1).astype(rows.dtype)
    return rows if padding_idx < 0 else jnp.where((ids == padding_idx)[..., None], lax.stop_gradient(rows), rows)


@op("aten.embedding_bag.default", "aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")
def embedding_bag(
    weight: Any, ids: Any, starts: Any, by_frequency: bool = False, mode: int = 0, sparse: bool = False, scales: Any = None,
    with_last: bool = False, padding_idx: int = -1,
) -> Any:  # fmt: skip
    """The sum, mean or largest of the rows of each bag; `starts` says where each begins. An empty bag is 0."""
    if by_frequency:
        raise NotImplementedError("embedding_bag with scale_grad_by_freq=True is not implemented: its gradient differs")
    bags = starts.shape[0] - with_last
    own = jnp.searchsorted(starts[:bags], jnp.arange(ids.shape[0]), side="right") - 1
    own = jnp.where(ids == padding_idx, bags, own)  # beyond the last, where nothing is kept
    rows = weight[ids] if scales is None else weight[ids] * scales[:, None]
    count = jax.ops.segment_sum(jnp.ones_like(ids), own, bags)[:, None]
    if mode == 2:
        most = jax.ops.segment_max(rows, own, bags)
        return jnp.where(count > 0, most, 0), own, count[:, 0], starts
    total = jax.ops.segment_sum(rows, own, bags)
    total = total if mode == 0 else total / jnp.maximum(count, 1).astype(total.dtype)
    return total, own, count[:, 0], starts


@op("aten.embedding_bag.padding_idx")
def embedding_bag_padded(
    weight: Any, ids: Any, starts: Any, scaled: bool, mode: int, sparse: bool, scales: Any, with_last: bool,
    padding_idx: int | None,
) -> Any:  # fmt: skip
    """With an index that may count from the end."""
    hidden = -1 if padding_idx is None else padding_idx % weight.shape[0]
    return embedding_bag(weight, ids, starts, scaled, mode, sparse, scales, with_last, hidden)


@op("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(x: Any, indices: Sequence[Any]) -> Any:
    if any(i is not None and i.dtype in (jnp.bool_, jnp.uint8) for i in indices):
        raise TypeError(
            "x[mask] has as many entries as the mask has true ones: a compiled program needs to know how many. Convert "
            "the module again: ef.from_torch takes the number of its example"
        )
    return x[tuple(slice(None) if i is None else i for i in indices)]


@op("aten.index_put.default", "aten.index_put_.default", "aten._unsafe_index_put.default")
def index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    values = jnp.asarray(values).astype(x.dtype)
    masks = [i for i in indices if i is not None and i.dtype == jnp.bool_]
    if masks:
        return _put_beside(x, list(indices), values, accumulate)
    where = x.at[tuple(slice(None) if i is None else i for i in indices)]
    return where.add(values) if accumulate else where.set(values)


def _put_beside(x: jax.Array, indices: list[Any], values: jax.Array, accumulate: bool) -> jax.Array:
    """`x[:, i, mask] = values`: a mask with axes in front of it, and beside it indices that are one number each."""
    used = [i for i in indices if i is not None]
    first = next(n for n, i in enumerate(indices) if i is not None)
    numbers = [n for n, i in enumerate(indices) if i is not None and i.dtype != jnp.bool_]
    between = indices[first : first + len(used)]
    if len(used) - len(numbers) != 1 or any(i is None for i in between) or any(indices[n].size != 1 for n in numbers):
        raise TypeError(
            "index_put with a mask beside other indices than one number is not implemented: write torch.where"
        )
    if not numbers:
        mask = used[0]
        front = jnp.moveaxis(x, range(first, first + mask.ndim), range(mask.ndim))
        values = values.reshape((1,) * (front.ndim - mask.ndim + 1 - values.ndim) + values.shape)
        put = _put_by_mask(front, mask, jnp.moveaxis(values, first, 0), accumulate)
        return jnp.moveaxis(put, range(mask.ndim), range(first, first + mask.ndim))
    number = numbers[-1]
    axis = sum(i.ndim if i is not None and i.dtype == jnp.bool_ else 1 for i in indices[:number])
    place = indices[number].reshape(())
    place = jnp.where(place < 0, place + x.shape[axis], place)
    part = lax.dynamic_index_in_dim(x, place, axis, keepdims=False)
    part = _put_beside(part, indices[:number] + indices[number + 1 :], values, accumulate)
    return lax.dynamic_update_index_in_dim(x, part, place, axis)


def _put_by_mask(x: jax.Array, mask: jax.Array, values: jax.Array, accumulate: bool) -> jax.Array:
    """`x[mask] = values`: one value for all, or the values in order, one after another for each true entry."""
    if not values.size:  # as many as there are true entries: none
        return x
    rest = x.shape[mask.ndim :]
    wide = mask.reshape(mask.shape + (1,) * len(rest))
    if values.ndim <= len(rest) or (values.shape[0] == 1 and values.ndim == len(rest) + 1):
        put = jnp.broadcast_to(values.reshape(values.shape[-len(rest) :] if rest else ()), rest)
    else:
        order = jnp.cumsum(mask.reshape(-1)) - 1
        values = jnp.broadcast_to(values, (values.shape[0], *rest))
        put = jnp.take(values, jnp.clip(order, 0, values.shape[0] - 1), axis=0).reshape(x.shape)
    return jnp.where(wide, x + put if accumulate else put, x)


@op("aten.masked_scatter.default")
def masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    x, mask = jnp.broadcast_arrays(x, mask)
    return _put_by_mask(x.reshape(-1), mask.reshape(-1), source.reshape(-1).astype(x.dtype), False).reshape(x.shape)


@op("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    return jnp.where(mask, jnp.asarray(value).astype(x.dtype), x)


@op("aten.index_select.default")
def index_select(x: Any, dim: int, index: Any) -> Any:
    if not x.ndim:
        return x
    return jnp.take(x, jnp.atleast_1d(index), axis=axis_of(dim, x.ndim))


@op("aten.take.default")
def take_(x: Any, index: Any) -> Any:
    return x.reshape(-1)[index]


@op("aten.gather.default")
def gather(x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    if not x.ndim:
        return jnp.broadcast_to(x, index.shape)
    if not index.ndim:
        return x[index]
    return x[_places(x, dim, index)]


def _places(x: Any, dim: int, index: Any) -> tuple[Any, ...]:
    """The full index of `gather` and `scatter`: along other axes, the entry's own place."""
    axis = axis_of(dim, x.ndim)
    own = [jnp.arange(size).reshape((-1,) + (1,) * (index.ndim - n - 1)) for n, size in enumerate(index.shape)]
    own[axis] = index
    return tuple(own)


def _source(x: Any, index: Any, source: Any) -> Any:
    if not hasattr(source, "ndim") or not source.ndim:
        return jnp.asarray(source).astype(x.dtype)
    return source[tuple(slice(0, s) for s in index.shape)].astype(x.dtype)


@op("aten.scatter.src", "aten.scatter.value")
def scatter(x: Any, dim: int, index: Any, source: Any) -> Any:
    if not x.ndim:
        return _source(x, index, source).reshape(-1)[-1] if index.size else x
    return x.at[_places(x, dim, index)].set(_source(x, index, source))


@op("aten.scatter_add.default")
def scatter_add(x: Any, dim: int, index: Any, source: Any) -> Any:
    return x.at[_places(x, dim, index)].add(_source(x, index, source))


@op("aten.scatter.reduce", "aten.scatter.value_reduce")
def scatter_with(x: Any, dim: int, index: Any, source: Any, *, reduce: str) -> Any:
    where, source = x.at[_places(x, dim, index)], _source(x, index, source)
    return where.add(source) if reduce == "add" else where.multiply(source)


@op("aten.scatter_reduce.two")
def scatter_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    places, source = _places(x, dim, index), _source(x, index, source)
    lowest, highest = (-jnp.inf, jnp.inf) if kind(x.dtype) == 2 else (jnp.iinfo(x.dtype).min, jnp.iinfo(x.dtype).max)
    neutral = {"sum": 0, "mean": 0, "prod": 1, "amax": lowest, "amin": highest}[reduce]
    base = x if include_self else x.at[places].set(jnp.asarray(neutral, x.dtype))
    if reduce == "sum":
        return base.at[places].add(source)
    if reduce == "prod":
        return base.at[places].multiply(source)
    if reduce == "amax":
        return base.at[places].max(source)
    if reduce == "amin":
        return base.at[places].min(source)
    total = base.at[places].add(source)
    count = jnp.zeros(x.shape, default_of(1)).at[places].add(1) + int(include_self)
    count = jnp.maximum(count, 1)
    return total / count if kind(x.dtype) >= 2 else total // count


@op("aten.index_add.default")
def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    return x.at[(slice(None),) * axis_of(dim, x.ndim) + (index,)].add((source * alpha).astype(x.dtype))


@op("aten.index_copy.default")
def index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    return x.at[(slice(None),) * axis_of(dim, x.ndim) + (index,)].set(source.astype(x.dtype))


@op("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    return x.at[(slice(None),) * axis_of(dim, x.ndim) + (index,)].set(jnp.asarray(value).astype(x.dtype))


@op("aten.select_scatter.default")
def select_scatter(x: Any, source: Any, dim: int, index: int) -> Any:
    return x.at[(slice(None),) * axis_of(dim, x.ndim) + (index,)].set(source.astype(x.dtype))


@op("aten.slice_scatter.default")
def slice_scatter(x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    picked = slice(*slice(start, end, step).indices(x.shape[dim]))
    return x.at[(slice(None),) * axis_of(dim, x.ndim) + (picked,)].set(source.astype(x.dtype))


@op("aten.copy.default", "aten.fill.Tensor", "aten.fill.Scalar")
def copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    """What `x[...] = source` writes: of the shape and the dtype of what was there."""
    return jnp.broadcast_to(to(jnp.asarray(source), x.dtype), x.shape)


# ---- order


def _down(x: Any) -> Any:
    """Entries whose ascending order is the descending one of `x`, not-a-numbers first: ties keep their order."""
    if x.dtype == jnp.bool_:
        return ~x
    return ~x if kind(x.dtype) == 1 else jnp.where(x != x, -jnp.inf, -x)


@op("aten.sort.default", "aten.sort.stable")
def sort(x: Any, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> Any:
    if stable is not None and isinstance(stable, int) and not isinstance(stable, bool):
        raise TypeError("sort: stable is a boolean")
    if not x.ndim:
        return x, jnp.zeros((), default_of(1))
    axis = axis_of(dim, x.ndim)
    order = jnp.argsort(_down(x) if descending else x, axis=axis, stable=True)
    return jnp.take_along_axis(x, order, axis=axis), order.astype(default_of(1))


@op("aten.argsort.default", "aten.argsort.stable")
def argsort(x: Any, dim: int = -1, descending: bool = False, **_: Any) -> Any:
    return sort(x, dim, descending)[1]


@op("aten.topk.default")
def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """Which of equal entries torch takes is not defined; the first are taken here."""
    if not x.ndim:
        return (x, jnp.zeros((), default_of(1))) if k else (x[None][:0], jnp.zeros((0,), default_of(1)))
    axis = axis_of(dim, x.ndim)
    values, order = sort(x, axis, largest)
    first = (slice(None),) * axis + (slice(0, k),)
    return values[first], order[first]


@op("aten.kthvalue.default")
def kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    values, order = sort(x, dim)
    keep = (lambda v: jnp.expand_dims(v, dim)) if keepdim else (lambda v: v)
    return keep(jnp.take(values, k - 1, axis=dim)), keep(jnp.take(order, k - 1, axis=dim))


@op("aten.median.default")
def median(x: Any) -> Any:
    flat = x.reshape(-1)
    if not flat.size:
        return jnp.full((), jnp.nan, x.dtype)
    middle = jnp.sort(flat)[(flat.size - 1) // 2]
    return jnp.where((flat != flat).any(), jnp.nan, middle).astype(x.dtype) if kind(x.dtype) == 2 else middle


@op("aten.median.dim")
def median_dim(x: Any, dim: int, keepdim: bool = False) -> Any:
    """A row that holds something that is no number has the first such as its median."""
    if not x.ndim:
        return x, jnp.zeros((), default_of(1))
    value, place = kthvalue(x, (x.shape[dim] - 1) // 2 + 1, dim, keepdim)
    wrong = x != x
    first = jnp.argmax(wrong, axis=dim, keepdims=keepdim).astype(default_of(1))
    none = wrong.any(axis=dim, keepdims=keepdim)
    return (jnp.where(none, jnp.nan, value).astype(x.dtype) if kind(x.dtype) == 2 else value), jnp.where(
        none, first, place
    )


_wide = lambda out_int32: jnp.int32 if out_int32 else default_of(1)


@op("aten.bucketize.Tensor", "aten.bucketize.Scalar")
def bucketize(x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    return jnp.searchsorted(boundaries, x, side="right" if right else "left").astype(_wide(out_int32))


@op("aten.searchsorted.Tensor", "aten.searchsorted.Scalar")
def searchsorted(
    sequence: Any, x: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    side = side or ("right" if right else "left")
    x = jnp.asarray(x)
    if sorter is not None:
        sequence = jnp.take_along_axis(sequence, sorter, axis=-1)
    if sequence.ndim == 1:
        return jnp.searchsorted(sequence, x, side=side).astype(_wide(out_int32))
    rows = jax.vmap(lambda s, v: jnp.searchsorted(s, v, side=side))
    flat = rows(sequence.reshape(-1, sequence.shape[-1]), x.reshape(-1, x.shape[-1]))
    return flat.reshape(x.shape).astype(_wide(out_int32))


# ---- counting


@op("aten.histc.default")
def histc(x: Any, bins: int = 100, min: Any = 0, max: Any = 0) -> Any:
    x = x.reshape(-1)
    low, high = (jnp.min(x), jnp.max(x)) if min == max == 0 and x.size else (min, max)
    same = jnp.asarray(low == high)
    low, high = jnp.where(same, low - 1, low).astype(jnp.float32), jnp.where(same, high + 1, high).astype(jnp.float32)
    place = jnp.floor((x.astype(jnp.float32) - low) * bins / (high - low)).astype(jnp.int32)
    place = jnp.where(x == high, bins - 1, place)
    inside = (x >= low) & (x <= high)
    return jnp.zeros((bins,), x.dtype).at[jnp.where(inside, place, bins)].add(1, mode="drop")


@op("aten.one_hot.default")
def one_hot(x: Any, num_classes: int = -1) -> Any:
    if num_classes < 0:
        raise TypeError("one_hot without num_classes has as many columns as its largest value says: give num_classes")
    return jax.nn.one_hot(x, num_classes, dtype=default_of(1))


@op("aten.isin.Tensor_Tensor", "aten.isin.Tensor_Scalar")
def isin(x: Any, test: Any, *, assume_unique: bool = False, invert: bool = False) -> Any:
    return jnp.isin(x, jnp.asarray(test), invert=invert)


@op("aten.bincount.default")
def bincount(x: Any, weights: Any = None, minlength: int = 0) -> Any:
    raise TypeError("bincount makes as many entries as its largest value says, which a compiled program cannot know")
