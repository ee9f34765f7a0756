"""Rows that began alike change places: what beams do after every token."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..cache.cache import KV, Cache, CrossKV, reorder

_BLOCK = 32  # slots that are moved at once: few enough to copy little that is empty


def exchange(cache: Cache, rows: jax.Array, alike: int) -> Cache:
    """[`easyfn.reorder`][] among rows that hold the same in their first `alike` slots, and of the same encoder's output.

    Of keys and values only what was written since is moved, block by block and in place: at a prompt of 512 tokens a
    twentieth of the time of gathering the whole cache, and no second cache. Rings and states are moved whole.
    """
    if cache.table is not None or cache.length.ndim:
        return reorder(cache, rows)
    kind = lambda node: isinstance(node, (KV, CrossKV))
    nodes = jax.tree.leaves(cache.layers, is_leaf=kind)
    kinds = [type(node) for node in nodes for _ in jax.tree.leaves(node)]
    leaves, tree = jax.tree.flatten(cache.layers)
    axes = cache.batch_axes
    slotted = [n for n, found in enumerate(kinds) if found is KV]
    full, tail = divmod(cache.segment_ids.shape[1] - alike, _BLOCK)

    def moved(n: int, x: jax.Array, at: Any, width: int) -> jax.Array:
        axis = axes[n]
        assert axis is not None
        part = lax.dynamic_slice_in_dim(x, at, width, axis + 2)
        return lax.dynamic_update_slice_in_dim(x, jnp.take(part, rows, axis=axis), at, axis + 2)

    def block(i: jax.Array, xs: list[jax.Array]) -> list[jax.Array]:
        return [moved(n, x, alike + i * _BLOCK, _BLOCK) for n, x in zip(slotted, xs, strict=True)]

    xs = [leaves[n] for n in slotted]
    if full:
        xs = lax.fori_loop(0, jnp.minimum(-((alike - cache.length) // _BLOCK), full), block, xs)
    if tail:
        end = cache.segment_ids.shape[1] - tail
        xs = [moved(n, x, end, tail) for n, x in zip(slotted, xs, strict=True)]
    new = dict(zip(slotted, xs, strict=True))
    for n, (x, axis) in enumerate(zip(leaves, axes, strict=True)):
        if n not in new:
            new[n] = x if axis is None or kinds[n] is CrossKV else jnp.take(x, rows, axis=axis)
    return dataclasses.replace(
        cache,
        layers=jax.tree.unflatten(tree, [new[n] for n in range(len(leaves))]),
        segment_ids=jnp.take(cache.segment_ids, rows, axis=0),
        positions=jnp.take(cache.positions, rows, axis=0),
    )
