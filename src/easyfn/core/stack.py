"""`stack` and `unstack`: runs of alike layers to one scanned body, and back. A transform, not an architecture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .habits import no_path
from .tree import Pipelined, Stacked, is_array, is_leaf, layers_in, rebuild


def stack(model: Any) -> Any:
    """`model` with every run of alike layers as one [`Stacked`][easyfn.Stacked], which runs as a `lax.scan`.

    Two layers are alike if their structure, static fields, shapes and dtypes are equal; the period of a pattern is found
    (Gemma's five local layers and a global one make one body of six). Compile time then does not grow with depth. Works on
    abstract, quantized, adapted and sharded models; of concrete arrays it makes a copy, so prefer `ef.load(path,
    stack=True)`. A model without a run is returned as it is; so are layers that hold leaves which are no arrays, as layers of
    other packages do, and no scan carries.

    ```python
    import easyfn as ef
    model = ef.testing.tiny(num_hidden_layers=4)
    stacked = ef.stack(model)
    assert len(stacked.model.layers) == 1
    ```
    """
    no_path(model)
    return _stacked(model)


def _stacked(model: Any) -> Any:
    if is_leaf(model):
        return model
    if type(model) is tuple and len(model) > 1 and not any(is_leaf(layer) for layer in model):
        return _stack_layers(model)
    return rebuild(model, lambda _, child: _stacked(child))


def unstack(model: Any) -> Any:
    """The inverse of [`easyfn.stack`][]: every layer on its own again."""
    no_path(model)
    return _unstacked(model)


def _unstacked(model: Any) -> Any:
    if is_leaf(model) or isinstance(model, (Stacked, Pipelined)):
        return model
    if type(model) is tuple and any(isinstance(layer, (Stacked, Pipelined)) for layer in model):
        return tuple(layer for part in model for layer in _layers(part))
    return rebuild(model, lambda _, child: _unstacked(child))


def one_by_one(layers: tuple[Any, ...]) -> list[Any]:
    """The layers of a tuple that are called by themselves and not by `fold`: taken out of runs, as they are inside."""
    return [layer for part in layers for layer in (_layers(part) if isinstance(part, Stacked) else [part])]


def _layers(part: Any) -> list[Any]:
    if isinstance(part, Pipelined):
        return [layer for run in part.rounds for layer in _layers(run)]
    if not isinstance(part, Stacked):
        return [_unstacked(part)]
    return [jax.tree.map(functools.partial(_index, i), block) for i in range(part.repeats) for block in part.blocks]


def _stack_layers(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    alike = [_kind(layer) for layer in layers]
    ids = [alike.index(kind) for kind in alike]
    out: list[Any] = []
    index = 0
    for start, period, repeats in segments(ids):
        index = sum(layers_in(part) for part in out)
        if repeats == 1:
            out.extend(layers[start : start + period])
            continue
        blocks = [
            jax.tree.map(lambda *leaves: _join(leaves), *[layers[start + j + i * period] for i in range(repeats)])
            for j in range(period)
        ]
        out.append(Stacked(blocks, index, repeats))
    return tuple(out)


def _kind(layer: Any) -> Any:
    leaves, treedef = jtu.tree_flatten(layer)
    if not all(map(is_array, leaves)):
        return object()  # like no other
    return treedef, tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves)


def segments(kinds: Sequence[Any]) -> list[tuple[int, int, int]]:
    """Cuts a sequence into runs `(start, period, repeats)`, greedily from the left, where it saves most bodies."""
    found: list[tuple[int, int, int]] = []
    start, n = 0, len(kinds)
    while start < n:
        best = (0, 1, 1)
        for period in range(1, (n - start) // 2 + 1):
            repeats = 1
            while kinds[start + repeats * period : start + (repeats + 1) * period] == kinds[start : start + period]:
                repeats += 1
            saved = (repeats - 1) * period
            if repeats > 1 and saved > best[0]:
                best = (saved, period, repeats)
        _, period, repeats = best
        found.append((start, period, repeats))
        start += period * repeats
    return found


def _join(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        first = leaves[0]
        sharding = first.sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.P(None, *sharding.spec))
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype, sharding=sharding)
    return jnp.stack(leaves)


def _index(i: int, leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sharding = leaf.sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.P(*sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)
    return leaf[i]
