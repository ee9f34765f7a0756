"""Products of a few rows by compiled kernels: the package `easyfn-kernels`, on a single CPU device, where a weight fits it.

XLA on CPU cannot unpack 4 bits in registers: it writes an unpacked copy, or converts codes one by one, and a packed weight
multiplies one row slower than a plain one. The kernels compute the same product, in float32 with the input as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.kernels import Kernel, either

Product = Callable[[Any, jax.Array], jax.Array]


class Thin(NamedTuple):
    """What a format tells of its kernel: which weights fit it, and the call, `(w, rows)` to float32 `(m, out)`."""

    fits: Callable[[Any], bool]
    product: Product


def call(target: str, w_shape: tuple[int, ...], rows: jax.Array, *operands: Any, **attributes: Any) -> jax.Array:
    """The kernel `target` of `easyfn-kernels` on `rows` and the parts of a weight `(out, in)`."""
    out = jax.ShapeDtypeStruct((rows.shape[0], w_shape[0]), jnp.float32)
    return jax.ffi.ffi_call(f"easyfn_{target}", out)(rows.astype(jnp.float32), *operands, **attributes)


def thin_product(rules: Any, w: Any, rows: jax.Array) -> jax.Array:
    """The product of a format's `rules`, or its kernel's where the program is lowered for one CPU device and not for export."""
    parts, tree = jax.tree.flatten((w, rows))
    return either(_PRODUCT, (rules, tree), *parts)[0]


def _plain(choices: Any, *parts: jax.Array) -> list[jax.Array]:
    rules, tree = choices
    w, rows = jax.tree.unflatten(tree, parts)
    return [rules.product(rules.ready(w), rows)]


def _call(choices: Any, *parts: jax.Array) -> list[jax.Array]:
    rules, tree = choices
    return [rules.thin.product(*jax.tree.unflatten(tree, parts))]


_PRODUCT = Kernel(_plain, _call)
