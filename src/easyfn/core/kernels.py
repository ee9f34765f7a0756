"""Compiled kernels that stand for a plain program: the package `easyfn-kernels`, on a single CPU device.

A program that a kernel can stand for is one equation, which holds the plain program. It becomes the kernel where it is
lowered for one CPU device and not for export; what maps it, counts its operations, plans it for many devices or
differentiates it by no rule of its own sees the plain program. `EASYFN_KERNELS=0` in the environment leaves kernels out, at
the next trace.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

FLAG = "EASYFN_KERNELS"
_left_out = ContextVar("easyfn_kernels_left_out", default=False)


@functools.cache
def _package() -> ModuleType | None:
    if importlib.util.find_spec("easyfn_kernels") is None:
        return None
    import easyfn_kernels

    try:
        easyfn_kernels.register()
    except Exception as e:
        raise ImportError(
            f"easyfn-kernels is installed and does not load here ({e}). Build it again (`pip install ./kernels`), or leave it "
            f"out: {FLAG}=0 in the environment"
        ) from e
    return easyfn_kernels


def kernels() -> str | None:
    """The instruction set of the compiled kernels that are used on CPU; `None` where they are off or missing.

    ```python
    import easyfn as ef
    assert ef.quant.kernels() in (None, "avx512", "avx2", "plain")
    ```
    """
    if os.environ.get(FLAG) == "0" or _left_out.get():
        return None
    package = _package()
    return None if package is None else str(package.instructions())


@contextmanager
def plain_programs() -> Iterator[None]:
    """Within it, what is traced has no kernels: of operations that are counted, the same on every machine."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


class Kernel(NamedTuple):
    """A program of arrays and the kernel that can stand for it: functions of a module, which are given first some hashable
    `choices` and then arrays, and give a list of arrays.

    - `plain(choices, *operands)`: the program; `call(choices, *operands)`: the kernel.
    - `derivative(choices, operands, tangents)`: the results and their tangents; without it, those of the program. Tangents
      are `ad.Zero` where nothing varies.
    - `transposed(choices, operands, cotangents)`, of a program that is linear in its last operands: the cotangents of these.
      Of the operands it reads only the others.
    """

    plain: Callable[..., Sequence[jax.Array]]
    call: Callable[..., Sequence[jax.Array]] | None = None
    derivative: Callable[..., Any] | None = None
    transposed: Callable[..., Sequence[jax.Array]] | None = None


def either(kernel: Kernel, choices: Hashable, *operands: jax.Array) -> list[jax.Array]:
    """The results of the plain program, by that or by the kernel."""
    program = _traced(kernel, choices, *map(jax.typeof, operands))
    return list(_kernel.bind(*operands, program=program, kernel=kernel, choices=choices))


@functools.lru_cache(256)
def _traced(kernel: Kernel, choices: Hashable, *avals: Any) -> Any:
    return jax.make_jaxpr(lambda *operands: list(kernel.plain(choices, *operands)))(*avals)


_kernel = Primitive("easyfn_kernel")
_kernel.multiple_results = True


@_kernel.def_impl
def _(*operands: Any, program: Any, **_: Any) -> Any:
    return jaxpr_as_fun(program)(*operands)


@_kernel.def_abstract_eval
def _(*operands: Any, program: Any, **_: Any) -> Any:
    return program.out_avals


def _batched(operands: Any, axes: Any, *, program: Any, **_: Any) -> Any:
    out = jax.vmap(jaxpr_as_fun(program), in_axes=tuple(axes))(*operands)
    return out, [0] * len(out)


def _differentiated(operands: Any, tangents: Any, *, program: Any, kernel: Kernel, choices: Hashable) -> Any:
    if kernel.derivative is not None:
        return kernel.derivative(choices, operands, tangents)
    return jax.jvp(jaxpr_as_fun(program), tuple(operands), tuple(map(ad.instantiate_zeros, tangents)))


def _transposed(cotangents: Any, *operands: Any, program: Any, kernel: Kernel, choices: Hashable) -> Any:
    assert kernel.transposed is not None
    slopes = kernel.transposed(choices, operands, [ad.instantiate_zeros(c) for c in cotangents])
    every = [None] * (len(operands) - len(slopes)) + list(slopes)
    return [s if ad.is_undefined_primal(x) else None for s, x in zip(every, operands, strict=True)]


def _lower_plain(ctx: Any, *operands: Any, program: Any, **_: Any) -> Any:
    return mlir.lower_fun(jaxpr_as_fun(program), multiple_results=True)(ctx, *operands)


def _lower_cpu(ctx: Any, *operands: Any, program: Any, kernel: Kernel, choices: Hashable) -> Any:
    where = ctx.module_context
    # Of several devices each would be handed the whole operands; a file that is run elsewhere must not need the package.
    alone = getattr(where.axis_context, "num_devices", None) == 1
    if kernel.call is None or not alone or where.lowering_parameters.for_export:
        return _lower_plain(ctx, *operands, program=program)
    return mlir.lower_fun(functools.partial(kernel.call, choices), multiple_results=True)(ctx, *operands)


batching.primitive_batchers[_kernel] = _batched
ad.primitive_jvps[_kernel] = _differentiated
ad.primitive_transposes[_kernel] = _transposed
mlir.register_lowering(_kernel, _lower_plain)
mlir.register_lowering(_kernel, _lower_cpu, platform="cpu")
