"""The arrays of a training state as Orbax takes them: by path, keys as their numbers, and compared with what is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.tree import is_array, is_leaf, near, nodes


def library(who: str) -> Any:
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(f"{who} needs orbax-checkpoint: pip install 'easyfn[train]'") from error
    return orbax


def is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_impl(key: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)  # of an abstract key too
    return found[0]


def numbers(leaf: Any) -> Any:
    """The numbers of a PRNG key, for a file."""
    if not is_key(leaf):
        return leaf
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)


def by_path(tree: Any) -> dict[str, Any]:
    """Every array by its path, in the order of the tree. Leaves that are no arrays are settings of a layer, as those of
    other packages have."""
    found = {path: numbers(leaf) for path, leaf in nodes(tree) if is_leaf(leaf) and is_array(leaf)}
    if len(found) != sum(map(is_array, jax.tree.leaves(tree))):
        raise ValueError("two arrays of this tree have one path: give its containers names")
    return {path: own(leaf) for path, leaf in found.items()}


def own(leaf: Any) -> Any:
    """What Orbax takes: on many processes, an array that each has for itself is a numpy one."""
    if isinstance(leaf, jax.Array) and jax.process_count() > 1 and leaf.is_fully_addressable:
        return np.array(leaf)
    return leaf


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def compare(wanted: dict[str, Any], saved: Any, path: Path) -> None:
    errors = []
    for name in wanted.keys() - saved.keys():
        errors.append(f"missing: {name}. {near(name, saved)}")
    for name in saved.keys() - wanted.keys():
        errors.append(f"unexpected: {name}")
    for name in wanted.keys() & saved.keys():
        here, there = wanted[name], saved[name]
        if tuple(here.shape) != tuple(there.shape) or here.dtype != there.dtype:
            errors.append(f"{name} is {there.dtype}{list(there.shape)}, asked for {here.dtype}{list(here.shape)}")
    if errors:
        listed = "\n  ".join(sorted(errors)[:20])
        raise ValueError(f"load_state: {path} holds another model or optimizer than `like`:\n  {listed}")
