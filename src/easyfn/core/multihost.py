"""Many processes that run one program (`jax.distributed`): what each of them does alone, and what they agree on.

Everything here is a call that all processes make, in the same order; in a single process it costs nothing. What a
process holds whole it may save alone (`alone=True`): only a model that lies on several takes them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def local(array: Any) -> Any:
    """The same array where this process can read all of it: one that other processes hold parts of is gathered."""
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer) or array.is_fully_addressable:
        return array
    if not array.is_fully_replicated:
        if not isinstance(array.sharding, NamedSharding):
            raise ValueError(f"an array of several processes is to be gathered, and its sharding is {array.sharding}")
        whole = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.block_until_ready(jax.jit(_same, out_shardings=whole)(array))  # or many would wait for memory
    return array.addressable_data(0)


def spans(tree: Any) -> bool:
    """Whether an array of a tree lies on several processes."""
    return any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in jax.tree.leaves(tree))


def _same(array: jax.Array) -> jax.Array:
    return array


def unbound(array: Any) -> Any:
    """`local`, but tied to no device: it may go into a computation with arrays of all processes again."""
    there = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return jnp.asarray(on_host(array)) if there and not array.is_fully_addressable else array


def on_host(array: Any) -> np.ndarray:
    """An array as numpy, whole, on every process."""
    return np.asarray(local(array))


def agree(error: BaseException | None, what: str, alone: bool = False) -> None:
    """Waits for all processes, and raises on all of them if one of them brings an error: its own there."""
    if jax.process_count() > 1 and not alone:
        from jax.experimental import multihost_utils

        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
        if error is None and failed.size:
            raise RuntimeError(
                f"{what}: process {', '.join(map(str, failed))} of {jax.process_count()} failed; its own error says why"
            )
    if error is not None:
        raise error


def first(action: Callable[[], Any], what: str, alone: bool = False) -> None:
    """Process 0 does it; the others wait until it is done, and fail if it failed."""
    error: BaseException | None = None
    if alone or jax.process_index() == 0:
        try:
            action()
        except Exception as raised:
            error = raised
    agree(error, what, alone)


def same_number(number: int, alone: bool = False) -> int:
    """The number (below 2**31) of process 0."""
    if jax.process_count() == 1 or alone:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
