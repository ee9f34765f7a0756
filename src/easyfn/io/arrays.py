"""One array of a model, from the tensors of a file: read into the memory where it stays, once.

On a mesh a process reads those parts that its own devices hold, and no byte of another's: a part that several of its
devices hold is read once. So the most that the host holds at a time is what is being read: one tensor's parts for each
thread of the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..names.part import Index, bounds, shape_at, whole
from ..names.rules import Tensors
from .checkpoint import Source
from .safetensors import aligned


def dense(
    shape: tuple[int, ...], dtype: Any, layers: Sequence[Tensors], source: Source, sharding: Any, stacked: bool = False
) -> jax.Array:
    """One array: `layers` are its tensors, several if it is `stacked`; `sharding` is its place on a mesh, or `None`."""
    if not stacked and layers[0].plain:
        value = source.value(layers[0].names[0])
        if value is not None:
            return put(value.astype(dtype), sharding)
    if sharding is None:
        return put(_part(whole(shape), dtype, layers, source, stacked))
    read: dict[Any, np.ndarray] = {}
    arrays = []
    for device, place in sharding.addressable_devices_indices_map(tuple(shape)).items():
        index = bounds(place, shape)
        key = tuple((s.start, s.stop) for s in index)
        if key not in read:
            read[key] = _part(index, dtype, layers, source, stacked)
        arrays.append(put(read[key], device))
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, arrays, dtype=dtype)


def put(array: Any, place: Any = None) -> jax.Array:
    """An array on a device or a sharding, of which other processes may hold a part; without a copy where it can stay."""
    if isinstance(place, jax.sharding.Sharding) and not place.is_fully_addressable:
        return jax.make_array_from_callback(array.shape, place, lambda index: np.asarray(array[index]))
    return jax.device_put(array, place, may_alias=True)


def _part(index: Index, dtype: Any, layers: Sequence[Tensors], source: Source, stacked: bool) -> np.ndarray:
    """The part of an array at `index`."""
    out = aligned(shape_at(index), dtype)
    if not stacked:
        fill(out, layers[0], source, index)
        return out
    for n, layer in enumerate(layers[index[0]]):
        fill(out[n, ...], layer, source, index[1:])
    return out


def fill(out: np.ndarray, t: Tensors, source: Source, index: Index) -> None:
    """Reads into `out`, a part of our array: a transposed, split or expert tensor is a view of it, not a second copy."""
    for name, theirs, view in t.cut(out, index):
        read_part(view, source, name, theirs)


def read_part(view: np.ndarray, source: Source, name: str, index: Index) -> None:
    """Fills a view with a part of a tensor, in the view's dtype."""
    dtype = np.dtype(source.tensors[name].dtype)
    if view.dtype == dtype and view.flags.c_contiguous:
        _bytes(view, source, name, index)
        return
    raw = aligned(view.shape, dtype)
    _bytes(raw, source, name, index)
    np.copyto(view, raw, casting="unsafe")


def _bytes(out: np.ndarray, source: Source, name: str, index: Index) -> None:
    if source.read_part is not None:
        source.read_part(name, out, index)
        return
    # A source that reads rows only: those that the part touches.
    shape = tuple(source.tensors[name].shape)
    if index[1:] == whole(shape[1:]):
        per_row = out.nbytes // max(1, len(out)) if shape else 0
        source.read_into(name, out, index[0].start * per_row if shape else 0)
        return
    rows = aligned((len(out), *shape[1:]), out.dtype)
    source.read_into(name, rows, index[0].start * (rows.nbytes // max(1, len(rows))))
    np.copyto(out, rows[(slice(None), *index[1:])])
