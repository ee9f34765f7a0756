"""Grouped convolutions on a mesh: each device convolves the rows that it has."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from ..context import Runtime, divisible, held_axes

BATCH = Runtime().batch_axes


def on_own_rows(
    convolution: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, weight: jax.Array, groups: int
) -> jax.Array:
    """`convolution(x, weight)` of rows that are split over the mesh's axes of a batch, with the weight on every device.

    Left to itself, XLA's partitioner adds the gradient of a grouped convolution's weight up over all devices, those that
    hold copies of the same rows included: on a mesh with a second axis it is as many times too large
    (`findings/jax-grouped-convolution-gradient-on-a-mesh.sh`).
    """
    mesh = jax.typeof(x).sharding.mesh
    held = () if groups == 1 or mesh.empty else held_axes(mesh, mesh.axis_names)
    if not held:
        return convolution(x, weight)
    rows = PartitionSpec(divisible(mesh, BATCH, x.shape[0]) or None)
    return jax.shard_map(
        convolution, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows, axis_names=set(held)
    )(x, weight)
