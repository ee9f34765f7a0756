"""Operators that make arrays, and those of the spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .shape import to
from .table import default_of, kind, promoted, torch_op

op = torch_op.register


@op("aten.full.default")
def full(size: Sequence[int], fill: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(tuple(size), fill, promoted(fill) if dtype is None else dtype)


@op("aten.scalar_tensor.default")
def scalar_tensor(value: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.asarray(value, default_of(2) if dtype is None else dtype)


@op("aten.full_like.default")
def full_like(x: Any, fill: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(x.shape, fill, dtype or x.dtype)


@op("aten.new_full.default")
def new_full(x: Any, size: Sequence[int], fill: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.full(tuple(size), fill, dtype or x.dtype)


for _name, _fill in {"zeros": 0, "ones": 1, "empty": 0}.items():
    op(f"aten.{_name}.{'memory_format' if _name == 'empty' else 'default'}")(
        lambda size, *, dtype=None, _v=_fill, **_: jnp.full(tuple(size), _v, dtype or default_of(2))
    )
    op(f"aten.{_name}_like.default")(lambda x, *, dtype=None, _v=_fill, **_: jnp.full(x.shape, _v, dtype or x.dtype))
    op(f"aten.new_{_name}.default")(
        lambda x, size, *, dtype=None, _v=_fill, **_: jnp.full(tuple(size), _v, dtype or x.dtype)
    )


@op("aten.empty_strided.default", "aten.new_empty_strided.default")
def empty_strided(size: Any, *rest: Any, dtype: Any = None, **_: Any) -> Any:
    like, size = (size, rest[0]) if hasattr(size, "dtype") else (None, size)
    return jnp.zeros(tuple(size), dtype or (default_of(2) if like is None else like.dtype))


@op("aten.empty_permuted.default")
def empty_permuted(size: Any, order: Any, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.zeros(tuple(size), dtype or default_of(2))


@op("aten.arange.default", "aten.arange.start", "aten.arange.start_step", "prims.iota.default")
def arange(*bounds: Any, dtype: Any = None, **options: Any) -> Any:
    if "start" in options and len(bounds) == 1 and "step" in options:  # prims.iota(length, start=, step=)
        start, step = options["start"], options["step"]
        return (start + step * jnp.arange(bounds[0])).astype(dtype)
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    dtype = promoted(start, end, step) if dtype is None else dtype
    if all(isinstance(b, (int, float)) for b in (start, end, step)):
        count = max(math.ceil((end - start) / step), 0)
        if kind(dtype) == 1:
            return (int(start) + int(step) * jnp.arange(count, dtype=dtype)).astype(dtype)
        return (start + step * jnp.arange(count, dtype=jnp.float32)).astype(dtype)
    return jnp.arange(start, end, step, dtype)


@op("aten.linspace.default")
def linspace(start: Any, end: Any, steps: int, *, dtype: Any = None, **_: Any) -> Any:
    dtype = default_of(2) if dtype is None else dtype
    return to(jnp.linspace(start, end, steps, dtype=jnp.float32), dtype)


@op("aten.logspace.default")
def logspace(start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.logspace(start, end, steps, base=base, dtype=dtype or default_of(2))


@op("aten.eye.default", "aten.eye.m")
def eye(n: int, m: int | None = None, *, dtype: Any = None, **_: Any) -> Any:
    return jnp.eye(n, m, dtype=dtype or default_of(2))


@op("aten.tril_indices.default")
def tril_indices(row: int, col: int, offset: int = 0, **_: Any) -> Any:
    return jnp.stack(jnp.tril_indices(row, offset, col)).astype(default_of(1))


@op("aten.triu_indices.default")
def triu_indices(row: int, col: int, offset: int = 0, **_: Any) -> Any:
    return jnp.stack(jnp.triu_indices(row, offset, col)).astype(default_of(1))


# ---- the spectrum


@op("aten._fft_r2c.default")
def fft_r2c(x: Any, dim: Sequence[int], normalization: int, onesided: bool) -> Any:
    norm = {0: "backward", 1: "ortho", 2: "forward"}[normalization]
    if onesided:
        return jnp.fft.rfftn(x, axes=tuple(dim), norm=norm)
    return jnp.fft.fftn(x, axes=tuple(dim), norm=norm)


@op("aten._fft_c2c.default")
def fft_c2c(x: Any, dim: Sequence[int], normalization: int, forward: bool) -> Any:
    norm = {0: "backward", 1: "ortho", 2: "forward"}[normalization]
    if forward:
        return jnp.fft.fftn(x, axes=tuple(dim), norm=norm)
    norm = {"backward": "forward", "forward": "backward", "ortho": "ortho"}[norm]
    return jnp.fft.ifftn(x, axes=tuple(dim), norm=norm)


@op("aten._fft_c2r.default")
def fft_c2r(x: Any, dim: Sequence[int], normalization: int, last_dim_size: int) -> Any:
    norm = {0: "forward", 1: "ortho", 2: "backward"}[normalization]
    sizes = [x.shape[d] for d in dim[:-1]] + [last_dim_size]
    return jnp.fft.irfftn(x, s=sizes, axes=tuple(dim), norm=norm)
