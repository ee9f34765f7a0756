"""Convolutions, pooling, norms and resizing: channels first, as in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....nn.parallel.rows import on_own_rows
from .table import torch_op

op = torch_op.register


def _each(value: Any, count: int) -> list[int]:
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    return value * count if len(value) == 1 else value


def _convolve(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    axes = weight.ndim - 2
    single = x.ndim == axes + 1
    x = x[None] if single else x
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(_each(dilation, axes), weight.shape[2:], strict=True)]
        pads = [(0, 0)] * axes if padding == "valid" else [(r // 2, r - r // 2) for r in reach]
    else:
        pads = [(p, p) for p in _each(padding, axes)]
    dtype = jnp.result_type(x.dtype, weight.dtype)
    one = lambda x, weight: lax.conv_general_dilated(
        x, weight, _each(stride, axes), pads, rhs_dilation=_each(dilation, axes), feature_group_count=groups
    )
    y = on_own_rows(one, x.astype(dtype), weight.astype(dtype), groups)
    y = y if bias is None else y + bias.reshape(-1, *([1] * axes)).astype(y.dtype)
    return y[0] if single else y


@op("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
    "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")  # fmt: skip
def conv(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    return _convolve(x, weight, bias, stride, padding, dilation, groups)


@op("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """The gradient of a convolution: its input is spread by the stride, its kernel turned round."""
    axes = weight.ndim - 2
    single = x.ndim == axes + 1
    x = x[None] if single else x
    inputs, outputs = weight.shape[:2]
    kernel = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:]).swapaxes(1, 2)
    kernel = jnp.flip(kernel.reshape(groups * outputs, inputs // groups, *weight.shape[2:]), tuple(range(2, 2 + axes)))
    pads = []
    for k, p, o, d in zip(
        weight.shape[2:], _each(padding, axes), _each(output_padding, axes), _each(dilation, axes), strict=True
    ):
        reach = d * (k - 1)
        pads.append((reach - p, reach - p + o))
    one = lambda x, kernel: lax.conv_general_dilated(
        x,
        kernel,
        [1] * axes,
        pads,
        lhs_dilation=_each(stride, axes),
        rhs_dilation=_each(dilation, axes),
        feature_group_count=groups,
    )
    dtype = jnp.result_type(x.dtype, kernel.dtype)
    y = on_own_rows(one, x.astype(dtype), kernel.astype(dtype), groups)
    y = y if bias is None else y + bias.reshape(-1, *([1] * axes)).astype(y.dtype)
    return y[0] if single else y


@op("aten.convolution.default", "aten._convolution.default")
def convolution(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any,
    groups: int, *_: Any,
) -> Any:  # fmt: skip
    if transposed:
        return conv_transpose(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolve(x, weight, bias, stride, padding, dilation, groups)


# ---- norms: in float32, as torch computes them


def _normed(x: Any, axes: tuple[int, ...], eps: float) -> tuple[Any, Any, Any]:
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(h, axis=axes, keepdims=True)
    var = jnp.mean(jnp.square(h - mean), axis=axes, keepdims=True)
    scale = lax.rsqrt(var + eps)
    return (h - mean) * scale, mean, scale


def _affine(h: Any, weight: Any, bias: Any, dtype: Any) -> Any:
    h = h if weight is None else h * weight.astype(h.dtype)
    return (h if bias is None else h + bias.astype(h.dtype)).astype(dtype)


@op("aten.layer_norm.default")
def layer_norm(
    x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True
) -> Any:
    h, _mean, _scale = _normed(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    return _affine(h, weight, bias, x.dtype)


@op("aten.native_layer_norm.default")
def native_layer_norm(x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    h, mean, scale = _normed(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    return _affine(h, weight, bias, x.dtype), mean, scale


@op("aten.rms_norm.default", "aten._fused_rms_norm.default")
def rms_norm(x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    return _affine(h * lax.rsqrt(jnp.mean(jnp.square(h), axis=axes, keepdims=True) + eps), weight, None, x.dtype)


@op("aten.group_norm.default")
def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, _: bool = True) -> Any:
    shape = (x.shape[0], groups, -1)
    h = _normed(x.reshape(shape), (2,), eps)[0].reshape(x.shape)
    wide = lambda w: None if w is None else w.reshape(-1, *([1] * (x.ndim - 2)))
    return _affine(h, wide(weight), wide(bias), x.dtype)


@op("aten.native_group_norm.default")
def native_group_norm(x: Any, weight: Any, bias: Any, n: int, c: int, hxw: int, group: int, eps: float) -> Any:
    _h, mean, scale = _normed(x.reshape(n, group, -1), (2,), eps)
    return group_norm(x, group, weight, bias, eps), mean[..., 0], scale[..., 0]


def _along(x: Any) -> Any:
    return lambda w: None if w is None else w.reshape(1, -1, *([1] * (x.ndim - 2)))


@op("aten._native_batch_norm_legit_no_training.default")
def batch_norm_stored(x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float) -> Any:
    wide = _along(x)
    h = (x - wide(mean)) * lax.rsqrt(wide(var) + eps)
    empty = jnp.zeros((0,), x.dtype)
    return _affine(h, wide(weight), wide(bias), x.dtype), empty, empty


@op("aten.batch_norm.default", "aten.cudnn_batch_norm.default")
def batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, _: bool = True
) -> Any:
    if not training:
        return batch_norm_stored(x, weight, bias, mean, var, momentum, eps)[0]
    h, _mean, _scale = _normed(x, (0, *range(2, x.ndim)), eps)
    wide = _along(x)
    return _affine(h, wide(weight), wide(bias), x.dtype)


@op("aten._native_batch_norm_legit.no_stats", "aten._native_batch_norm_legit_functional.default")
def batch_norm_own(x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> Any:
    """By the numbers of the batch itself: what an instance norm is made of."""
    h, mean, scale = _normed(x, (0, *range(2, x.ndim)), eps)
    wide = _along(x)
    return _affine(h, wide(weight), wide(bias), x.dtype), mean.reshape(-1), scale.reshape(-1)


@op("aten.instance_norm.default")
def instance_norm(
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    _: bool = True,
) -> Any:
    if not use_input_stats:
        return batch_norm_stored(x, weight, bias, mean, var, momentum, eps)[0]
    wide = _along(x)
    return _affine(_normed(x, tuple(range(2, x.ndim)), eps)[0], wide(weight), wide(bias), x.dtype)


# ---- pooling


def _windows(x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    axes = len(kernel)
    stride = _each(stride, axes) if stride not in (None, [], ()) else list(kernel)
    padding, dilation = _each(padding, axes), _each(dilation, axes)
    pads = []
    for size, k, s, p, d in zip(x.shape[-axes:], kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        free = size + 2 * p - reach
        count = (-(-free // s) if ceil_mode else free // s) + 1
        if ceil_mode and (count - 1) * s >= size + p:
            count -= 1
        pads.append((p, max((count - 1) * s + reach - size - p, 0)))
    lead = (1,) * (x.ndim - axes)
    return (*lead, *kernel), (*lead, *stride), [(0, 0)] * len(lead) + pads, (*lead, *dilation)


def _max_pool(axes: int) -> Any:
    def run(
        x: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Any:
        window, strides, pads, dilated = _windows(x, _each(kernel, axes), stride, padding, dilation, ceil_mode)
        low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
        return lax.reduce_window(x, np.array(low, x.dtype), lax.max, window, strides, pads, window_dilation=dilated)

    return run


for _axes in (1, 2, 3):
    op(f"aten.max_pool{_axes}d.default")(_max_pool(_axes))


@op(
    "aten.max_pool1d_with_indices.default",
    "aten.max_pool2d_with_indices.default",
    "aten.max_pool3d_with_indices.default",
)
def max_pool_with_indices(
    x: Any, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """The indices are those of the flattened image."""
    axes = len(kernel)
    values = _max_pool(axes)(x, kernel, stride, padding, dilation, ceil_mode)
    window, strides, pads, dilated = _windows(x, _each(kernel, axes), stride, padding, dilation, ceil_mode)
    place = jnp.broadcast_to(jnp.arange(math.prod(x.shape[-axes:])).reshape(x.shape[-axes:]), x.shape)

    def better(a: Any, b: Any) -> Any:
        first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    start = (jnp.asarray(-jnp.inf, x.dtype), jnp.asarray(jnp.iinfo(place.dtype).max, place.dtype))
    pick = lax.reduce_window(
        (lax.stop_gradient(x), place), start, better, window, strides, pads, window_dilation=dilated
    )
    return values, pick[1]


def _avg_pool(axes: int) -> Any:
    def run(
        x: Any, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:  # fmt: skip
        kernel = _each(kernel, axes)
        window, strides, pads, _ = _windows(x, kernel, stride, padding, 1, ceil_mode)
        zero = np.zeros((), x.dtype)
        total = lax.reduce_window(x, zero, lax.add, window, strides, pads)
        if divisor_override is not None:
            return total / divisor_override
        ones = jnp.ones(x.shape[-axes:], x.dtype)
        if count_include_pad:  # of the padding that was asked for, not of what rounding up adds
            ones = jnp.pad(ones, [(p, p) for p in _each(padding, axes)], constant_values=1)
            pads = [(a - p, max(b - p, 0)) for (a, b), p in zip(pads[-axes:], _each(padding, axes), strict=True)]
        count = lax.reduce_window(ones, zero, lax.add, window[-axes:], strides[-axes:], pads[-axes:])
        return total / count

    return run


for _axes in (1, 2, 3):
    op(f"aten.avg_pool{_axes}d.default")(_avg_pool(_axes))


@op("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default",
    "aten.adaptive_avg_pool3d.default", "aten._adaptive_avg_pool3d.default")  # fmt: skip
def adaptive_avg_pool(x: Any, output_size: Any) -> Any:
    return _adaptive(x, output_size, jnp.mean)


@op("aten.adaptive_max_pool1d.default", "aten.adaptive_max_pool2d.default")
def adaptive_max_pool(x: Any, output_size: Any) -> Any:
    return _adaptive(x, output_size, jnp.max), None


def _adaptive(x: Any, output_size: Any, reduce: Any) -> Any:
    sizes = list(output_size) if isinstance(output_size, (list, tuple)) else [output_size]
    for n, count in enumerate(sizes):
        axis = x.ndim - len(sizes) + n
        size = x.shape[axis]
        count = size if count is None else count
        if size % count == 0:
            shape = (*x.shape[:axis], count, size // count, *x.shape[axis + 1 :])
            x = reduce(x.reshape(shape), axis=axis + 1)
            continue
        parts = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        lead = (slice(None),) * axis
        x = jnp.stack([reduce(x[(*lead, slice(a, b))], axis=axis) for a, b in parts], axis=axis)
    return x


@op("aten.im2col.default")
def im2col(x: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    patches = lax.conv_general_dilated_patches(
        x, _each(kernel, 2), _each(stride, 2), [(p, p) for p in _each(padding, 2)], rhs_dilation=_each(dilation, 2)
    )
    return patches.reshape(x.shape[0], patches.shape[1], -1)


@op("aten.col2im.default")
def col2im(x: Any, output_size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    rows = x if x.ndim == 3 else x[None]
    image = jax.ShapeDtypeStruct((rows.shape[0], rows.shape[1] // math.prod(_each(kernel, 2)), *output_size), x.dtype)
    (out,) = jax.linear_transpose(lambda v: im2col(v, kernel, dilation, padding, stride), image)(rows)
    return out if x.ndim == 3 else out[0]
