"""Rows times the matrix of their group, in blocks: what a mixture of experts is computed with.

`lax.ragged_dot` multiplies every row with every group's matrix on CPU and NVIDIA (10 times the time of this loop
at 512 tokens of 8 experts), a scan over groups with masks does the same (6 times), and gathering a matrix per row
copies it per row (8 times, at 8 tokens). Here a loop runs over blocks of rows of one group: each block slices its
matrix and calls `dot`, so groups without rows cost nothing, one decoded token reads only its experts, and any
weight format works.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def block_rows(rows: int, groups: int) -> int:
    """Rows per block: about what one group has, a power of two up to 128."""
    return min(128, 1 << max(0, round(rows / groups) - 1).bit_length())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped_dot(dot: Callable[[Any, jax.Array], jax.Array], w: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
    """`x[r] @ w[g].T` for the group `g` of each row, where rows are sorted by group.

    `w`: an array `(groups, out, in)`, or a pytree whose arrays have the groups in front; `dot(w[g], rows)` is a verb's
    product. `x`: `(rows, in)`; `sizes`: `(groups,)`, rows per group, adding up to the rows. Returns `(rows, out)` in
    the dtype of `x`.

    Custom derivatives, because the loop has as many steps as there are blocks, which autodiff cannot reverse.
    """
    size = block_rows(x.shape[0], sizes.shape[0])
    padded = jnp.pad(x, ((0, size), (0, 0)))
    out = jax.eval_shape(lambda w, x: dot(_at(w, 0), x), w, padded[:size])
    count, block = blocks_of(sizes, size)

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        group, start, _ = block(i)
        rows = dot(_at(w, group), lax.dynamic_slice_in_dim(padded, start, size))
        # A block may reach into the next group; that group's own blocks come later and write over it.
        return lax.dynamic_update_slice_in_dim(y, rows.astype(y.dtype), start, 0)

    with jax.named_scope(f"turns={x.shape[0]}/{size}"):  # how often the loop runs when blocks are full: read by `flops`
        y = lax.fori_loop(0, count, step, jnp.zeros((x.shape[0] + size, out.shape[1]), x.dtype))
    return y[: x.shape[0]]


def _forward(dot: Any, w: Any, x: jax.Array, sizes: jax.Array) -> tuple[jax.Array, Any]:
    return grouped_dot(dot, w, x, sizes), (w, x, sizes)


def _backward(dot: Any, saved: Any, g: jax.Array) -> tuple[Any, jax.Array, Any]:
    w, x, sizes = saved
    size = block_rows(x.shape[0], sizes.shape[0])
    pad = ((0, size), (0, 0))
    padded_x, padded_g = jnp.pad(x, pad), jnp.pad(g, pad)
    leaves, treedef = jax.tree.flatten(w)
    inexact = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    count, block = blocks_of(sizes, size)

    def step(i: jax.Array, carry: Any) -> Any:
        dx, dw = carry
        group, start, end = block(i)
        here = [_at(leaf, group) for leaf in leaves]

        def product(floats: list[jax.Array], rows: jax.Array) -> jax.Array:
            rest = iter(floats)
            parts = [next(rest) if float_ else leaf for leaf, float_ in zip(here, inexact, strict=True)]
            return dot(jax.tree.unflatten(treedef, parts), rows)

        floats = [leaf for leaf, float_ in zip(here, inexact, strict=True) if float_]
        y, pull = jax.vjp(product, floats, lax.dynamic_slice_in_dim(padded_x, start, size))
        rows = lax.dynamic_slice_in_dim(padded_g, start, size)
        mine = (start + jnp.arange(size) < end)[:, None]
        d_floats, d_rows = pull(jnp.where(mine, rows, jnp.zeros_like(rows)).astype(y.dtype))
        dx = lax.dynamic_update_slice_in_dim(dx, d_rows.astype(dx.dtype), start, 0)
        return dx, [_add(total, d, group) for total, d in zip(dw, d_floats, strict=True)]

    # Sums over blocks in float32: a group has many in a long sequence.
    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf, float_ in zip(leaves, inexact, strict=True) if float_]
    with jax.named_scope(f"turns={x.shape[0]}/{size}"):
        dx, dw = lax.fori_loop(0, count, step, (jnp.zeros_like(padded_x), zeros))
    rest = iter(dw)
    cotangents = [
        next(rest).astype(leaf.dtype) if float_ else np.zeros(leaf.shape, jax.dtypes.float0)
        for leaf, float_ in zip(leaves, inexact, strict=True)
    ]
    return jax.tree.unflatten(treedef, cotangents), dx[: x.shape[0]], np.zeros(sizes.shape, jax.dtypes.float0)


grouped_dot.defvjp(_forward, _backward)


def _at(w: Any, group: Any) -> Any:
    """The weight of one group: every array of the format without its leading axis. Scalars belong to all groups."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, group, 0, keepdims=False) if leaf.ndim else leaf, w)


def _add(total: jax.Array, part: jax.Array, group: jax.Array) -> jax.Array:
    if not total.ndim:
        return total + part.astype(total.dtype)
    part = lax.dynamic_index_in_dim(total, group, 0, keepdims=True) + part[None].astype(total.dtype)
    return lax.dynamic_update_slice_in_dim(total, part, group, 0)


def blocks_of(
    sizes: jax.Array, size: int
) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]]:
    """How many blocks there are, and a function from a block's number to its group, first row and the group's end."""
    sizes = sizes.astype(jnp.int32)
    ends = jnp.cumsum(sizes)
    number = (sizes + size - 1) // size
    last = jnp.cumsum(number)

    def block(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        group = jnp.searchsorted(last, i, side="right").astype(jnp.int32)
        within = i - (last[group] - number[group])
        return group, ends[group] - sizes[group] + within * size, ends[group]

    return last[-1], block
