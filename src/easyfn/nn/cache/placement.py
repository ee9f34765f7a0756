"""Where a cache lies on a mesh: its rows where the batch's are, its heads where the weights that make them are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..context import Runtime, divisible
from ..parallel.pipeline import StagedCache
from .axes import places
from .cache import Cache


def on_mesh(cache: Cache, mesh: Any, runtime: Runtime = Runtime()) -> Cache:
    """`cache`, in a compiled function, held to a mesh: rows over `runtime.batch_axes`, heads over `runtime.head_axes`.

    Which axes they are, each kind of cache says ([`easyfn.nn.cache_axes`][]); in front of them are the layers of a stacked
    run. Axes that do not divide stay whole, and the layers of a pipeline lie with their stages. XLA carries the split on to
    what the loop over tokens writes; without it, it may well keep all keys on every device.
    """

    def placed(leaf: jax.Array, axis: int | None, heads: int | None, stages: tuple[str, ...] = ()) -> jax.Array:
        if axis is None:
            return leaf
        spec: list[Any] = [None] * leaf.ndim
        if stages and axis:
            spec[0] = divisible(mesh, stages, leaf.shape[0]) or None
        rows = tuple(a for a in runtime.batch_axes if a not in stages)
        spec[axis] = divisible(mesh, rows, leaf.shape[axis]) or None
        if heads is not None:
            spec[heads] = divisible(mesh, runtime.head_axes, leaf.shape[heads]) or None
        if not any(spec):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    leaves, tree = jax.tree.flatten(cache.layers)
    staged = lambda node: isinstance(node, StagedCache)
    stages: list[tuple[str, ...]] = []
    for node in jax.tree.leaves(cache.layers, is_leaf=staged):
        stages += [(node.axis,)] * len(jax.tree.leaves(node)) if staged(node) else [()]
    axes = zip(leaves, cache.batch_axes, places(cache.layers, "heads"), stages, strict=True)
    layers = tree.unflatten([placed(*each) for each in axes])
    segments, positions = placed(cache.segment_ids, 0, None), placed(cache.positions, 0, None)
    return dataclasses.replace(cache, layers=layers, segment_ids=segments, positions=positions)
