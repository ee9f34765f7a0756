"""What the formats share: a product that differentiates its input and never its weight, in blocks of rows on CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..core.dtype import cast
from ..core.halves import product
from ..core.kernels import kernels
from ..core.trainable import trainable
from ..core.weight import dense, dot, flat, shape_of, take
from .thin import Thin, thin_product

Product = Callable[[Any, jax.Array], jax.Array]

# A temporary of this many float32 entries stays in the cache of a core; a larger one is paid in page faults.
BLOCK = 1 << 20

FEW = 16  # rows, up to which a product is bound by unpacking the weight


class _Rules(NamedTuple):
    product: Product
    back: Product
    exact: Product
    ready: Callable[[Any], Any]
    thin: Thin | None


def against_dense(w: Any, g: jax.Array) -> jax.Array:
    """`g @ dense(w)`: `g` of shape `(m, out)`; float32 `(m, in)`."""
    return _matmul(g, dense(replace(w, dtype=g.dtype.name)), 0)


def register_format(
    cls: type,
    product: Product,
    back: Product = against_dense,
    *,
    rows: Callable[[Any, jax.Array], Any] | None = None,
    enter: Callable[[Any, jax.Array], tuple[Any, jax.Array]] | None = None,
    ready: Callable[[Any], Any] = lambda w: w,
    exact: Product | None = None,
    thin: Thin | None = None,
) -> None:
    """Teaches the verbs a weight format of which `dense` and `shape_of` are known.

    `product(w, rows)` is the float32 product of `rows`, `(m, in)` in any float dtype, with a 2-D weight; `back(w, g)`
    is the product with its transpose, for the gradient of the input, given a block of the weight's rows at a time.
    `rows(w, ids)` gives rows of a table, still packed; by default those of every array. `enter(w, rows)` is what happens
    to the input first, and what is left of the weight then (smoothing, an order of columns); it is differentiated as
    it is written. `ready(w)` is the weight as `product` and `back` see it: every array with the
    rows of the weight, so that it can be cut into blocks of them. `exact` is the product where a gradient is taken, if
    `product` is a faster one that is not as exact. `thin` is a compiled kernel for a few rows on CPU, where one is installed.
    The format has a field `codes` and a static field `dtype`, that of the dense array it stands for.
    """
    rules = _Rules(product, back, exact or product, ready, thin)

    @dot.register(cls)
    def _(w: Any, x: jax.Array, *, dtype: Any = None) -> jax.Array:
        shape = shape_of(w)
        if len(shape) != 2 or x.shape[-1] != shape[1]:
            raise ValueError(f"dot: a weight (out, in) of shape {shape} does not fit inputs of shape {x.shape}")
        out = dtype or jnp.result_type(w.dtype, x.dtype)
        inputs, restore = flat(x)
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(w.dtype)
        if enter is not None:
            w, inputs = enter(w, inputs)
        return restore(_frozen(rules, inputs.dtype.name, w, inputs).astype(out))

    @cast.register(cls)
    def _(w: Any, dtype: Any, pattern: Any = None) -> Any:
        return replace(w, dtype=jnp.dtype(dtype).name)

    @trainable.register(cls)
    def _(w: Any) -> Any:
        return jax.tree.map(lambda _: False, w)

    @take.register(cls)
    def _(w: Any, ids: jax.Array) -> Any:
        if len(w.codes.shape) > 2:
            return _take(w, ids)  # whole experts, still packed
        found = dense((rows or _take)(w, ids.reshape(-1)))
        return found.reshape(*ids.shape, found.shape[-1])


def _take(w: Any, ids: jax.Array) -> Any:
    return jax.tree.map(lambda part: jnp.take(part, ids, axis=0, mode="clip"), w)


def replace(w: Any, **fields: Any) -> Any:
    """A weight with some of its fields replaced: static ones, or arrays by anything (axes, for `axes_of`)."""
    new = object.__new__(type(w))
    for name in type(w).__dataclass_fields__:
        object.__setattr__(new, name, fields.get(name, getattr(w, name)))
    return new


def inner(rows: jax.Array, w: jax.Array) -> jax.Array:
    """`rows @ w.T` in float32, of two arrays of one dtype."""
    return _matmul(rows, w, 1)


def _matmul(rows: jax.Array, w: jax.Array, axis: int) -> jax.Array:
    # XLA on CPU multiplies a single row of 16 bits in a slow vector kernel; two rows reach the fast one.
    single = rows.shape[0] == 1 and rows.dtype != jnp.float32
    if single:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
    y = product(rows, w, (((1,), (axis,)), ((), ())))
    return y[:1] if single else y


def smoothed(w: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
    """The input of a product divided by `w.smooth`, if there is one, and the weight without."""
    if w.smooth is None:
        return w, rows
    return replace(w, smooth=None), (rows / lax.stop_gradient(w.smooth)).astype(rows.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _frozen(rules: _Rules, dtype: str, w: Any, rows: jax.Array) -> jax.Array:
    # Within a mesh each device has a part of the weight, and XLA cannot cut what it does not know.
    whole = rows.shape[0] <= FEW and jax.typeof(rows).sharding.mesh.empty
    if rules.thin is not None and whole and rules.thin.fits(w) and kernels() is not None:
        return thin_product(rules, w, rows)
    return rules.product(rules.ready(w), rows)


def _forward(rules: _Rules, dtype: str, w: Any, rows: jax.Array) -> Any:
    return rules.exact(rules.ready(w), rows), w


def _backward(rules: _Rules, dtype: str, w: Any, g: jax.Array) -> Any:
    g = g.astype(dtype)  # as the backward pass of a plain 16-bit product
    w = after(g, rules.ready(w))
    blocks = row_blocks(w)
    if blocks == 1:
        dx = rules.back(w, g)
    else:
        cut = jnp.moveaxis(g.reshape(g.shape[0], blocks, -1), 1, 0)
        zero = jnp.zeros((g.shape[0], shape_of(w)[1]), jnp.float32)
        dx = lax.scan(lambda sum, xs: (sum + rules.back(*xs), None), zero, (split_rows(w, blocks), cut))[0]
    return None, dx.astype(dtype)


_frozen.defvjp(_forward, _backward)


def after(x: jax.Array, w: Any) -> Any:
    """`w`, whose codes cannot be unpacked before `x` is known.

    Unpacking depends on nothing, so XLA would hoist it out of loops and keep the dense copies of all layers at once
    (an optimization barrier does not hold it). Zero times a float is not folded, for it may be NaN, which converts
    to 0.
    """
    zero = (x[(0,) * x.ndim] * 0).astype(jnp.float32).astype(w.codes.dtype)
    return replace(w, codes=w.codes + zero)


def row_blocks(w: Any) -> int:
    """Into how many blocks of rows a product is cut, so that what a block unpacks stays in the cache."""
    out, width = shape_of(w)
    if out * width <= 2 * BLOCK or any(part.shape[0] != out for part in jax.tree.leaves(w)):
        return 1
    smallest = -(-out * width // BLOCK)
    return next((n for n in range(smallest, min(4 * smallest, out) + 1) if out % n == 0), 1)


def split_rows(w: Any, blocks: int) -> Any:
    return jax.tree.map(lambda part: part.reshape(blocks, -1, part.shape[-1]), w)


def by_blocks(part: Product) -> Product:
    """A product that runs over blocks of the weight's rows on CPU, and in one piece elsewhere."""

    def whole(w: Any, rows: jax.Array) -> jax.Array:
        return part(after(rows, w), rows)

    def pieces(w: Any, rows: jax.Array) -> jax.Array:
        y = lax.map(lambda piece: part(piece, rows), split_rows(after(rows, w), row_blocks(w)))
        return jnp.moveaxis(y, 0, 1).reshape(rows.shape[0], -1)

    def product(w: Any, rows: jax.Array) -> jax.Array:
        if row_blocks(w) == 1:
            return whole(w, rows)
        return lax.platform_dependent(w, rows, cpu=pieces, default=whole)

    return product
