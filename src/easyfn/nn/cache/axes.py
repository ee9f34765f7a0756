"""What the axes of a cache are: said by each kind of it, not guessed from its shapes."""

from __future__ import annotations

from typing import Any

import jax

from ...core.verb import verb
from .cache import KV, CrossKV, Ring
from .int8 import Int8Slots


@verb(example="@ef.nn.cache_axes.register({type})\ndef _(cache): return ('batch heads dim', 'batch')")
def cache_axes(cache: Any) -> tuple[str, ...]:
    """The names of the axes of one layer's cache: a line of names for each of its arrays, in the order of its fields.

    `batch` are the rows, `heads` what may be split over devices; other names are for readers. An array of a stacked run
    of layers has more axes, in front of these. An array without `batch` is shared by all rows.

    ```python
    import jax.numpy as jnp, easyfn as ef
    assert ef.nn.cache_axes(ef.nn.empty_kv(1, 2, 8, 16, None, jnp.float32))[0] == "batch heads slots dim"
    ```
    """
    raise cache_axes.missing(cache, "Where its rows are is not known.")


@cache_axes.register(KV)
def _(cache: KV) -> tuple[str, ...]:
    return _held(cache.k) + _held(cache.v)


@cache_axes.register(Ring, CrossKV)
def _(cache: Ring | CrossKV) -> tuple[str, ...]:
    return (*_held(cache.k), *_held(cache.v), "batch slots")


def _held(held: Any) -> tuple[str, ...]:
    names = "batch heads slots dim"
    return (names, "batch heads slots") if isinstance(held, Int8Slots) else (names,)


def places(layers: Any, name: str) -> tuple[int | None, ...]:
    """Where the axis `name` is in every leaf of `layers`, the caches of a model; `None` where there is none."""

    def where(names: str, leaf: jax.Array) -> int | None:
        words = names.split()
        return leaf.ndim - len(words) + words.index(name) if name in words else None

    known = lambda node: cache_axes.knows(type(node))
    found: list[int | None] = []
    for node in jax.tree.leaves(layers, is_leaf=known):
        found += [where(*each) for each in zip(cache_axes(node), jax.tree.leaves(node), strict=True)]
    return tuple(found)
