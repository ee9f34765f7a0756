"""Operators that resize and sample images."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .table import torch_op

op = torch_op.register


def _sizes(x: Any, axes: int, output_size: Any, scales: Any) -> list[int]:
    if output_size is not None:
        return list(output_size)
    return [math.floor(s * f) for s, f in zip(x.shape[-axes:], scales, strict=True)]


@op("aten.upsample_nearest1d.vec", "aten.upsample_nearest2d.vec", "aten.upsample_nearest3d.vec")
def nearest(x: Any, output_size: Any = None, scales: Any = None) -> Any:
    axes = x.ndim - 2
    sizes = _sizes(x, axes, output_size, scales)
    for n, size in enumerate(sizes):
        axis = x.ndim - axes + n
        step = 1 / scales[n] if scales is not None else x.shape[axis] / size
        index = jnp.minimum(jnp.floor(jnp.arange(size) * step).astype(jnp.int32), x.shape[axis] - 1)
        x = jnp.take(x, index, axis=axis)
    return x


@op("aten.upsample_nearest1d.default", "aten.upsample_nearest2d.default", "aten.upsample_nearest3d.default")
def nearest_sized(x: Any, output_size: Any, *scales: Any) -> Any:
    return nearest(x, output_size, scales if scales and all(scales) else None)


def _cubic(t: Any, a: float = -0.75) -> list[Any]:
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _interpolated(x: Any, axis: int, size: int, corners: bool, scale: Any, cubic: bool) -> Any:
    """One axis, resized by weighted neighbours: linear (2) or cubic (4, Keys' kernel with a = -0.75)."""
    old = x.shape[axis]
    if corners:
        places = jnp.arange(size) * ((old - 1) / (size - 1) if size > 1 else 0.0)
    else:
        places = (jnp.arange(size) + 0.5) * (1 / scale if scale else old / size) - 0.5
        places = places if cubic else jnp.maximum(places, 0)
    low = jnp.floor(places)
    t = places - low
    weights = _cubic(t) if cubic else [1 - t, t]
    shape = (-1,) + (1,) * (x.ndim - axis - 1)
    out: Any = 0
    for n, weight in enumerate(weights):
        index = jnp.clip(low.astype(jnp.int32) + n - (1 if cubic else 0), 0, old - 1)
        out = out + jnp.take(x, index, axis=axis) * weight.reshape(shape).astype(x.dtype)
    return out


def _antialiased(x: Any, axis: int, size: int, corners: bool, scale: Any, cubic: bool) -> Any:
    """One axis, resized by all that lies under the kernel (linear, or Keys' with a = -0.5), which is as wide as the step."""
    old = x.shape[axis]
    step = ((old - 1) / (size - 1) if size > 1 else 0.0) if corners else 1 / scale if scale else old / size
    wide = max(step, 1.0)
    reach = (2 if cubic else 1) * wide
    center, place = step * (np.arange(size) + 0.5)[:, None], np.arange(old)
    inside = (place >= np.floor(center - reach + 0.5)) & (place < np.floor(center + reach + 0.5))
    d = np.abs(place - center + 0.5) / wide
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = np.where(d < 1, near, np.where(d < 2, far, 0)) if cubic else np.maximum(1 - d, 0)
    weights = np.where(inside, weights, 0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(x.dtype)
    return jnp.moveaxis(jnp.tensordot(x, weights, axes=([axis], [1])), -1, axis)


def _resize(one_axis: Any, cubic: bool) -> Any:
    def run(x: Any, output_size: Any, align_corners: bool, *scales: Any) -> Any:
        axes = x.ndim - 2
        given = scales[0] if scales and isinstance(scales[0], (list, tuple)) else scales
        sizes = _sizes(x, axes, output_size, given)
        for n, size in enumerate(sizes):
            scale = given[n] if given and len(given) == axes else None
            x = one_axis(x, x.ndim - axes + n, size, align_corners, scale, cubic)
        return x

    return run


op("aten.upsample_bilinear2d.vec", "aten.upsample_bilinear2d.default", "aten.upsample_linear1d.vec",
   "aten.upsample_linear1d.default", "aten.upsample_trilinear3d.vec")(_resize(_interpolated, False))  # fmt: skip
op("aten.upsample_bicubic2d.vec", "aten.upsample_bicubic2d.default")(_resize(_interpolated, True))
for _form in ("vec", "default"):
    op(f"aten._upsample_bilinear2d_aa.{_form}")(_resize(_antialiased, False))
    op(f"aten._upsample_bicubic2d_aa.{_form}")(_resize(_antialiased, True))


@op("aten.grid_sampler_2d.default", "aten.grid_sampler.default")
def grid_sample(x: Any, grid: Any, mode: int, padding: int, align_corners: bool) -> Any:
    """`mode` 0 bilinear, 1 nearest, 2 bicubic; `padding` 0 zeros, 1 border, 2 reflection."""
    height, width = x.shape[2:]
    to = lambda g, size: (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
    px, py = to(grid[..., 0], width), to(grid[..., 1], height)

    def bounded(place: Any, size: int) -> Any:
        if padding == 2:
            low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
            place = jnp.abs(place - low)
            turns, rest = jnp.floor(place / (span or 1)), jnp.mod(place, span or 1)
            place = jnp.where(turns % 2 == 0, rest, span - rest) + low
        return jnp.clip(place, 0, size - 1) if padding else place

    def at(iy: Any, ix: Any) -> Any:
        inside = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height)
        iy, ix = jnp.clip(iy, 0, height - 1).astype(jnp.int32), jnp.clip(ix, 0, width - 1).astype(jnp.int32)
        picked = jax.vmap(lambda image, a, b: image[:, a, b])(x, iy, ix)
        return jnp.where(inside[:, None], picked, 0)

    if mode == 2:  # the places of its neighbours are what is put within bounds
        y0, x0 = jnp.floor(py), jnp.floor(px)
        across = list(enumerate(_cubic(px - x0), -1))
        row = lambda y: sum(at(bounded(y, height), bounded(x0 + m, width)) * w[:, None] for m, w in across)
        return sum(row(y0 + n) * w[:, None] for n, w in enumerate(_cubic(py - y0), -1))
    px, py = bounded(px, width), bounded(py, height)
    if mode == 1:
        return at(jnp.round(py), jnp.round(px))
    y0, x0 = jnp.floor(py), jnp.floor(px)
    wy, wx = (py - y0)[:, None], (px - x0)[:, None]
    top = at(y0, x0) * (1 - wx) + at(y0, x0 + 1) * wx
    return top * (1 - wy) + (at(y0 + 1, x0) * (1 - wx) + at(y0 + 1, x0 + 1) * wx) * wy
