"""Operators that move entries without changing them, and those that make arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .table import axis_of, default_of, kind, promoted, torch_op

op = torch_op.register


# ---- views


@op("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten._reshape_alias.default")
def view(x: Any, size: Sequence[int], stride: Any = None) -> Any:
    return jnp.reshape(x, tuple(size))


@op("aten.view_as.default", "aten.reshape_as.default")
def view_as(x: Any, other: Any) -> Any:
    return jnp.reshape(x, other.shape)


@op("aten.view.dtype")
def view_dtype(x: Any, dtype: Any) -> Any:
    return x.view(dtype)


@op("aten.alias.default", "aten.clone.default", "aten.contiguous.default", "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default", "aten.lift.default", "aten.positive.default")  # fmt: skip
def same(x: Any, *_: Any, **__: Any) -> Any:
    return x


@op("easyfn.stop_gradient.default", "aten.detach.default", "aten.detach_.default")
def detach(x: Any) -> Any:
    return lax.stop_gradient(x)


@op("aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "prims.convert_element_type.default")
def to(x: Any, dtype: Any = None, *_: Any, **__: Any) -> Any:
    if dtype is None or x.dtype == dtype:
        return x
    if kind(x.dtype) == 2 and kind(dtype) == 1:
        return jnp.trunc(x).astype(dtype)
    return x.astype(dtype)


@op("aten.to.device")
def to_device(x: Any, device: Any = None, dtype: Any = None, *_: Any, **__: Any) -> Any:
    return to(x, dtype)


@op("aten.type_as.default", "aten.to.other")
def type_as(x: Any, other: Any, *_: Any, **__: Any) -> Any:
    return to(x, other.dtype)


@op("aten.permute.default")
def permute(x: Any, dims: Sequence[int]) -> Any:
    return jnp.transpose(x, tuple(axis_of(d, x.ndim) for d in dims))


@op("aten.transpose.int", "aten.swapaxes.default")
def transpose(x: Any, dim0: int, dim1: int) -> Any:
    return jnp.swapaxes(x, dim0, dim1) if x.ndim else x


@op("aten.t.default", "aten.numpy_T.default")
def t(x: Any) -> Any:
    return x.T


@op("aten.mT.default", "aten.adjoint.default")
def mT(x: Any) -> Any:
    return jnp.swapaxes(x, -1, -2)


@op("aten.movedim.int", "aten.movedim.intlist")
def movedim(x: Any, source: Any, destination: Any) -> Any:
    return jnp.moveaxis(x, source, destination)


@op("aten.unsqueeze.default")
def unsqueeze(x: Any, dim: int) -> Any:
    return jnp.expand_dims(x, dim)


@op("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(x: Any, dim: Any = None) -> Any:
    dims = range(x.ndim) if dim is None else dim if isinstance(dim, (list, tuple)) else [dim]
    return jnp.squeeze(x, tuple(axis_of(d, x.ndim) for d in dims if x.ndim and x.shape[d] == 1))


@op("aten.expand.default")
def expand(x: Any, size: Sequence[int], *, implicit: bool = False) -> Any:
    own = (1,) * (len(size) - x.ndim) + x.shape
    return jnp.broadcast_to(x, tuple(mine if s == -1 else s for s, mine in zip(size, own, strict=True)))


@op("aten.expand_as.default")
def expand_as(x: Any, other: Any) -> Any:
    return jnp.broadcast_to(x, other.shape)


@op("aten.flatten.using_ints")
def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if not x.ndim:
        return x.reshape(1)
    start, end = axis_of(start_dim, x.ndim), axis_of(end_dim, x.ndim)
    return x.reshape(*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :])


@op("aten.unflatten.int")
def unflatten(x: Any, dim: int, sizes: Sequence[int]) -> Any:
    axis = axis_of(dim, x.ndim)
    rest = -math.prod(sizes)
    sizes = [x.shape[axis] // rest if s == -1 else s for s in sizes]
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


@op("aten.view_as_real.default")
def view_as_real(x: Any) -> Any:
    return jnp.stack([x.real, x.imag], axis=-1)


@op("aten.view_as_complex.default")
def view_as_complex(x: Any) -> Any:
    return lax.complex(x[..., 0], x[..., 1])


# ---- parts


@op("aten.slice.Tensor")
def slice_(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    axis = axis_of(dim, x.ndim)
    # Python's own rules for indices that are negative or beyond the end are torch's.
    picked = slice(*slice(start, end, step).indices(x.shape[axis]))
    if picked.stop < picked.start:
        picked = slice(picked.start, picked.start, step)
    return x[(slice(None),) * axis + (picked,)]


@op("aten.narrow.default")
def narrow(x: Any, dim: int, start: int, length: int) -> Any:
    start = start + x.shape[dim] if start < 0 else start
    return slice_(x, dim, start, start + length)


@op("aten.select.int")
def select(x: Any, dim: int, index: Any) -> Any:
    axis = axis_of(dim, x.ndim)
    if isinstance(index, int):
        if not -x.shape[axis] <= index < x.shape[axis]:
            raise IndexError(f"select: index {index} of an axis of {x.shape[axis]}")
        return x[(slice(None),) * axis + (index,)]
    return jnp.take(x, index, axis=axis)


@op("aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes")
def split(x: Any, size: Any, dim: int = 0) -> Any:
    axis = axis_of(dim, x.ndim)
    total = x.shape[axis]
    if isinstance(size, int):
        bounds = list(range(0, total, size)) if total else [0]
        return [slice_(x, axis, b, b + size) for b in bounds]
    starts = [0, *np.cumsum(size).tolist()]
    return [slice_(x, axis, a, a + s) for a, s in zip(starts, size, strict=False)]


@op("aten.chunk.default")
def chunk(x: Any, chunks: int, dim: int = 0) -> Any:
    return split(x, max(-(-x.shape[dim] // chunks), 1), dim)


@op("aten.tensor_split.sections")
def tensor_split(x: Any, sections: int, dim: int = 0) -> Any:
    return jnp.array_split(x, sections, axis=dim)


@op("aten.unbind.int")
def unbind(x: Any, dim: int = 0) -> Any:
    return [select(x, dim, n) for n in range(x.shape[dim])]


@op("aten.unfold.default")
def unfold(x: Any, dim: int, size: int, step: int) -> Any:
    if not x.ndim:
        return x.reshape(1)[:size]
    axis = axis_of(dim, x.ndim)
    index = jnp.arange((x.shape[axis] - size) // step + 1)[:, None] * step + jnp.arange(size)
    return jnp.moveaxis(jnp.take(x, index, axis=axis), axis + 1, -1)


@op("aten.as_strided.default")
def as_strided(x: Any, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Any:
    """Of an array whose entries lie in order, which is what an exported program has there."""
    index = jnp.asarray(storage_offset or 0)
    for axis, (count, step) in enumerate(zip(size, stride, strict=True)):
        index = index + (jnp.arange(count) * step).reshape(-1, *([1] * (len(size) - axis - 1)))
    return x.reshape(-1)[jnp.broadcast_to(index, tuple(size))]


@op("aten.diagonal.default")
def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    return jnp.diagonal(x, offset, dim1, dim2)


@op("aten.diag_embed.default")
def diag_embed(x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    size = x.shape[-1] + abs(offset)
    rows = jnp.arange(x.shape[-1]) + max(-offset, 0)
    out = jnp.zeros((*x.shape[:-1], size, size), x.dtype).at[..., rows, rows + offset].set(x)
    return jnp.moveaxis(out, (-2, -1), (dim1, dim2))


@op("aten.tril.default")
def tril(x: Any, diagonal: int = 0) -> Any:
    return jnp.tril(x, diagonal)


@op("aten.triu.default")
def triu(x: Any, diagonal: int = 0) -> Any:
    return jnp.triu(x, diagonal)


# ---- joining, repeating, padding


@op("aten.cat.default", "aten.concat.default")
def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    dtype = promoted(*tensors)
    kept = [x for x in tensors if x.shape != (0,)] or [tensors[0]]  # torch lets a bare `(0,)` join anything
    return jnp.concatenate([x.astype(dtype) for x in kept], axis=dim)


@op("aten.stack.default")
def stack(tensors: Sequence[Any], dim: int = 0) -> Any:
    dtype = promoted(*tensors)
    return jnp.stack([x.astype(dtype) for x in tensors], axis=dim)


@op("aten.flip.default")
def flip(x: Any, dims: Sequence[int]) -> Any:
    return jnp.flip(x, tuple(dims)) if x.ndim else x


@op("aten.roll.default")
def roll(x: Any, shifts: Any, dims: Any = ()) -> Any:
    one = lambda v: tuple(v) if isinstance(v, (list, tuple)) else (v,)
    if not one(dims):
        return jnp.roll(x.reshape(-1), one(shifts)[0]).reshape(x.shape)
    return jnp.roll(x, one(shifts), one(dims))


@op("aten.repeat.default", "aten.tile.default")
def repeat(x: Any, repeats: Sequence[int]) -> Any:
    return jnp.tile(x, tuple(repeats))


@op("aten.repeat_interleave.self_int", "aten.repeat_interleave.self_Tensor")
def repeat_interleave(x: Any, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Any:
    if not isinstance(repeats, int) and output_size is None:
        raise TypeError("repeat_interleave by an array makes as many entries as its values say: give output_size")
    return jnp.repeat(x, repeats, axis=dim, total_repeat_length=output_size)


@op("aten.repeat_interleave.Tensor")
def repeated_places(repeats: Any, *, output_size: int | None = None) -> Any:
    return repeat_interleave(jnp.arange(repeats.shape[0], dtype=default_of(1)), repeats, 0, output_size=output_size)


@op("aten.constant_pad_nd.default")
def constant_pad(x: Any, pad: Sequence[int], value: Any = 0) -> Any:
    pairs = [(pad[2 * n], pad[2 * n + 1], 0) for n in range(len(pad) // 2)]
    config = [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def _padded(mode: str) -> Any:
    def run(x: Any, padding: Sequence[int]) -> Any:
        pairs = [(padding[2 * n], padding[2 * n + 1]) for n in range(len(padding) // 2)]
        return jnp.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1], mode=mode)

    return run


op("aten.reflection_pad1d.default", "aten.reflection_pad2d.default", "aten.reflection_pad3d.default")(
    _padded("reflect")
)
op("aten.replication_pad1d.default", "aten.replication_pad2d.default", "aten.replication_pad3d.default")(
    _padded("edge")
)
op("aten._pad_circular.default")(_padded("wrap"))


@op("aten.pad.default", "aten._pad_enum.default")
def pad(x: Any, pad: Sequence[int], mode: Any = "constant", value: Any = None) -> Any:
    mode = {0: "constant", 1: "reflect", 2: "replicate", 3: "circular"}.get(mode, mode)
    if mode == "constant":
        return constant_pad(x, pad, 0 if value is None else value)
    return _padded({"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode])(x, pad)


@op("aten.pixel_shuffle.default")
def pixel_shuffle(x: Any, upscale_factor: int) -> Any:
    *lead, channels, height, width = x.shape
    r = upscale_factor
    x = x.reshape(*lead, channels // r**2, r, r, height, width)
    n = len(lead)
    x = jnp.transpose(x, (*range(n + 1), n + 3, n + 1, n + 4, n + 2))
    return x.reshape(*lead, channels // r**2, height * r, width * r)


@op("aten.pixel_unshuffle.default")
def pixel_unshuffle(x: Any, downscale_factor: int) -> Any:
    *lead, channels, height, width = x.shape
    r = downscale_factor
    x = x.reshape(*lead, channels, height // r, r, width // r, r)
    n = len(lead)
    x = jnp.transpose(x, (*range(n + 1), n + 2, n + 4, n + 1, n + 3))
    return x.reshape(*lead, channels * r**2, height // r, width // r)


@op("aten.meshgrid.default", "aten.meshgrid.indexing")
def meshgrid(tensors: Sequence[Any], *, indexing: str = "ij") -> Any:
    return jnp.meshgrid(*tensors, indexing=indexing)


@op("aten.broadcast_tensors.default")
def broadcast_tensors(tensors: Sequence[Any]) -> Any:
    return jnp.broadcast_arrays(*tensors)
