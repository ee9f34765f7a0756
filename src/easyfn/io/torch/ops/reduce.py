"""Operators that reduce or accumulate over dimensions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .table import axes_of_dims, axis_of, default_of, floating, kind, torch_op

op = torch_op.register


def _counted(x: Any, dtype: Any) -> Any:
    """Sums and products of integers and booleans are int64 (int32 here)."""
    return x.astype(dtype if dtype is not None else x.dtype if kind(x.dtype) >= 2 else default_of(1))


@op("aten.sum.default", "aten.sum.dim_IntList")
def sum_(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return jnp.sum(_counted(x, dtype), axis=axes_of_dims(dim, x.ndim), keepdims=keepdim)


@op("aten.mean.default", "aten.mean.dim")
def mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return jnp.mean(x if dtype is None else x.astype(dtype), axis=axes_of_dims(dim, x.ndim), keepdims=keepdim)


@op("aten.prod.default", "aten.prod.dim_int")
def prod(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return jnp.prod(_counted(x, dtype), axis=axes_of_dims(dim, x.ndim), keepdims=keepdim)


@op("aten.amax.default")
def amax(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return jnp.max(x, axis=axes_of_dims(dim, x.ndim), keepdims=keepdim)


@op("aten.amin.default")
def amin(x: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return jnp.min(x, axis=axes_of_dims(dim, x.ndim), keepdims=keepdim)


op("aten.max.default")(jnp.max)
op("aten.min.default")(jnp.min)


def _with_index(reduce: Any, find: Any) -> Any:
    def run(x: Any, dim: int, keepdim: bool = False) -> Any:
        if not x.ndim:
            return x, jnp.zeros((), default_of(1))
        axis = axis_of(dim, x.ndim)
        return reduce(x, axis=axis, keepdims=keepdim), find(x, axis=axis, keepdims=keepdim).astype(default_of(1))

    return run


op("aten.max.dim")(_with_index(jnp.max, jnp.argmax))
op("aten.min.dim")(_with_index(jnp.min, jnp.argmin))


@op("aten.aminmax.default")
def aminmax(x: Any, *, dim: int | None = None, keepdim: bool = False) -> Any:
    return amin(x, dim, keepdim), amax(x, dim, keepdim)


def _arg(find: Any) -> Any:
    def run(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if not x.ndim:
            return jnp.zeros((), default_of(1))
        return find(x, axis=dim, keepdims=keepdim).astype(default_of(1))

    return run


op("aten.argmax.default")(_arg(jnp.argmax))
op("aten.argmin.default")(_arg(jnp.argmin))


def _as_truth(x: Any, truth: Any) -> Any:
    """Of bytes torch answers with a byte."""
    return truth.astype(jnp.uint8) if x.dtype == jnp.uint8 else truth


@op("aten.any.default", "aten._is_any_true.default", "aten.any.dim", "aten.any.dims")
def any_(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _as_truth(x, jnp.any(x, axis=axes_of_dims(dim, x.ndim), keepdims=keepdim))


@op("aten.all.default", "aten._is_all_true.default", "aten.all.dim", "aten.all.dims")
def all_(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _as_truth(x, jnp.all(x, axis=axes_of_dims(dim, x.ndim), keepdims=keepdim))


@op("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList")
def count_nonzero(x: Any, dim: Any = None) -> Any:
    return jnp.count_nonzero(x, axis=axes_of_dims(dim, x.ndim)).astype(default_of(1))


@op("aten.var.correction", "aten.var.dim", "aten.var.default")
def var(x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Any:
    if dim is True or dim is False:  # `var(x, unbiased)`
        dim, unbiased = None, dim
    less = correction if correction is not None else 0 if unbiased is False else 1
    axes = axes_of_dims(dim, x.ndim)
    mean = jnp.mean(x, axis=axes, keepdims=True)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    total = jnp.sum(jnp.square(jnp.abs(x - mean)), axis=axes, keepdims=keepdim)
    return total / jnp.asarray(max(count - less, 0), total.dtype)


@op("aten.std.correction", "aten.std.dim", "aten.std.default")
def std(x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Any:
    return jnp.sqrt(var(x, dim, unbiased, keepdim, correction=correction))


@op("aten.var_mean.correction", "aten.var_mean.dim")
def var_mean(x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Any:
    return var(x, dim, unbiased, keepdim, correction=correction), mean(x, dim, keepdim)


@op("aten.std_mean.correction")
def std_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return std(x, dim, None, keepdim, correction=correction), mean(x, dim, keepdim)


@op("aten.logsumexp.default")
def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    return jax.nn.logsumexp(floating(x), axis=axes_of_dims(dim, x.ndim), keepdims=keepdim)


@op("aten.linalg_vector_norm.default")
def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    x = x if dtype is None else x.astype(dtype)
    axes, size = axes_of_dims(dim, x.ndim), jnp.abs(x)
    if ord == 2:
        return jnp.sqrt(jnp.sum(jnp.square(size), axis=axes, keepdims=keepdim))
    if ord == float("inf"):
        return jnp.max(size, axis=axes, keepdims=keepdim)
    if ord == -float("inf"):
        return jnp.min(size, axis=axes, keepdims=keepdim)
    if ord == 0:
        return jnp.sum(size != 0, axis=axes, keepdims=keepdim).astype(size.dtype)
    return jnp.sum(size**ord, axis=axes, keepdims=keepdim) ** (1.0 / ord)


@op("aten.norm.ScalarOpt_dim", "aten.norm.Scalar")
def norm(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    return vector_norm(x, 2 if p is None else p, dim, keepdim)


@op("aten._weight_norm.default", "aten._weight_norm_interface.default")
def weight_norm(v: Any, g: Any, dim: int = 0) -> Any:
    axes = tuple(n for n in range(v.ndim) if n != axis_of(dim, v.ndim))
    return v * (g / jnp.sqrt(jnp.sum(jnp.square(v), axis=axes, keepdims=True)))


def _running(function: Any) -> Any:
    def run(x: Any, dim: int, *, dtype: Any = None) -> Any:
        x = _counted(x, dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32)) if kind(x.dtype) == 2 else x  # as torch adds up
        return function(wide, axis=axis_of(dim, x.ndim)).astype(x.dtype) if x.ndim else x

    return run


op("aten.cumsum.default")(_running(jnp.cumsum))
op("aten.cumprod.default")(_running(jnp.cumprod))


@op("aten.logcumsumexp.default")
def logcumsumexp(x: Any, dim: int) -> Any:
    return lax.cumlogsumexp(x, axis=axis_of(dim, x.ndim)) if x.ndim else x


def _running_extreme(running: Any) -> Any:
    def run(x: Any, dim: int) -> Any:
        if not x.ndim:
            return x, jnp.zeros((), default_of(1))
        axis = axis_of(dim, x.ndim)
        whole = x.astype(jnp.int8) if x.dtype == jnp.bool_ else x
        best = running(whole, axis=axis).astype(x.dtype)
        shape = [1] * x.ndim
        shape[axis] = -1
        index = jnp.arange(x.shape[axis], dtype=default_of(1)).reshape(shape)
        # Of equal values the latest: torch's rule here, unlike in `max`.
        return best, lax.cummax(jnp.where((x == best) | (x != x), index, 0), axis=axis)

    return run


op("aten.cummax.default")(_running_extreme(lax.cummax))
op("aten.cummin.default")(_running_extreme(lax.cummin))
