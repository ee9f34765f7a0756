"""Products of a few rows by compiled kernels: the package `easyfn-kernels`, on a single CPU device, where a weight fits it.

XLA on CPU cannot unpack 4 bits in registers: it writes an unpacked copy, or converts codes one by one, and a packed weight
multiplies one row slower than a plain one. The kernels compute the same product, in float32 with the input as it is.
`EASYFN_KERNELS=0` in the environment leaves them out, at the next trace.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

Product = Callable[[Any, jax.Array], jax.Array]


class Thin(NamedTuple):
    """What a format tells of its kernel: which weights fit it, and the call, `(w, rows)` to float32 `(m, out)`."""

    fits: Callable[[Any], bool]
    product: Product


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
            "out: EASYFN_KERNELS=0 in the environment"
        ) from e
    return easyfn_kernels


def kernels() -> str | None:
    """The instruction set of the kernels that products of a few rows use on CPU; `None` where they are off or missing.

    ```python
    import easyfn as ef
    assert ef.quant.kernels() in (None, "avx512", "avx2", "plain")
    ```
    """
    if os.environ.get("EASYFN_KERNELS") == "0":
        return None
    package = _package()
    return None if package is None else str(package.instructions())


def call(target: str, w_shape: tuple[int, ...], rows: jax.Array, *operands: Any, **attributes: Any) -> jax.Array:
    """The kernel `target` of `easyfn-kernels` on `rows` and the parts of a weight `(out, in)`."""
    out = jax.ShapeDtypeStruct((rows.shape[0], w_shape[0]), jnp.float32)
    return jax.ffi.ffi_call(f"easyfn_{target}", out)(rows.astype(jnp.float32), *operands, **attributes)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def thin_product(rules: Any, w: Any, rows: jax.Array) -> jax.Array:
    """The product of a format's `rules`, or its kernel's where the program is lowered for one CPU device and not for export."""
    parts, tree = jax.tree.flatten((w, rows))

    def plain(*parts: jax.Array) -> jax.Array:
        w, rows = jax.tree.unflatten(tree, parts)
        return rules.product(rules.ready(w), rows)

    return _thin.bind(*parts, program=jax.make_jaxpr(plain)(*parts), thin=rules.thin, tree=tree)


# One equation that holds the plain program: what counts operations, batches or plans for many devices sees that.
_thin = Primitive("easyfn_thin_product")


@_thin.def_impl
def _(*parts: Any, program: Any, thin: Thin, tree: Any) -> Any:
    return jaxpr_as_fun(program)(*parts)[0]


@_thin.def_abstract_eval
def _(*parts: Any, program: Any, thin: Thin, tree: Any) -> Any:
    return program.out_avals[0]


def _batched(parts: Any, axes: Any, *, program: Any, thin: Thin, tree: Any) -> Any:
    return jax.vmap(lambda *parts: jaxpr_as_fun(program)(*parts)[0], in_axes=tuple(axes))(*parts), 0


def _lower_plain(ctx: Any, *parts: Any, program: Any, thin: Thin, tree: Any) -> Any:
    return mlir.lower_fun(lambda *parts: jaxpr_as_fun(program)(*parts)[0], multiple_results=False)(ctx, *parts)


def _lower_cpu(ctx: Any, *parts: Any, program: Any, thin: Thin, tree: Any) -> Any:
    where = ctx.module_context
    # Of several devices each would be handed the whole weight; a file that is run elsewhere must not need the package.
    alone = getattr(where.axis_context, "num_devices", None) == 1
    if not alone or where.lowering_parameters.for_export:
        return _lower_plain(ctx, *parts, program=program, thin=thin, tree=tree)
    run = lambda *parts: thin.product(*jax.tree.unflatten(tree, parts))
    return mlir.lower_fun(run, multiple_results=False)(ctx, *parts)


batching.primitive_batchers[_thin] = _batched
mlir.register_lowering(_thin, _lower_plain)
mlir.register_lowering(_thin, _lower_cpu, platform="cpu")
