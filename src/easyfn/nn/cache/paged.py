"""Keys and values in pages that rows share out among them: memory is taken as rows grow, not for the longest one.

Pages have no rows. Which of them a row has, in the order of its slots, says a table of numbers that all layers share
(`Context.table`). So rows may come and go, and rows that begin alike may have their first pages in common.

A page is `(kv_heads, page_size, head_dim)`: head-major as every cache here. Attention reads a copy of a row's pages, as
wide as the table: give it the columns that are in use.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.verb import verb
from ..context import Context
from .axes import cache_axes
from .cache import KV, at_layer, attend_to, rewindable, seen, seen_here


class Paged(eqx.Module):
    """The pages of one layer: `k`, `v` `(pages, kv_heads, page_size, head_dim)`; of a stacked run of layers `(layers,
    pages, ...)`, with the `layer` that is meant while the run is under way."""

    k: jax.Array
    v: jax.Array
    layer: Any = None  # [] int32

    @property
    def page_size(self) -> int:
        return self.k.shape[-2]


@verb
def paged(cache: Any, num_pages: int, page_size: int) -> Any:
    """An empty cache of the same kind in pages; the default leaves a kind of cache as it is, a part for each row."""
    return cache


@paged.register(KV)
def _(cache: KV, num_pages: int, page_size: int) -> Paged:
    def pages(x: jax.Array) -> jax.Array:
        *lead, _, heads, _, dim = x.shape
        return jnp.zeros((*lead, num_pages, heads, page_size, dim), x.dtype)

    return Paged(pages(cache.k), pages(cache.v))


@at_layer.register(Paged)
def _(cache: Paged, layer: Any) -> Paged:
    return dataclasses.replace(cache, layer=layer)


@cache_axes.register(Paged)
def _(cache: Paged) -> tuple[str, ...]:
    return ("pages heads slots dim",) * 2 + (() if cache.layer is None else ("",))


@rewindable.register(Paged)
def _(cache: Paged) -> bool:
    return True


@attend_to.register(Paged)
def _(cache: Paged, k: jax.Array, v: jax.Array, context: Context, window: int | None) -> Any:
    if context.table is None:
        raise ValueError("a paged cache needs the table that says which pages each row has: Cache.table")
    slots, size = jnp.broadcast_to(context.slots, context.segment_ids.shape), cache.page_size
    column = jnp.clip(slots // size, 0, context.table.shape[1] - 1)
    page = jnp.take_along_axis(context.table, column, axis=1)
    page = jnp.where((context.segment_ids > 0) & (slots < context.table.shape[1] * size), page, -1)
    cache = dataclasses.replace(
        cache,
        k=_write(cache.k, k, page, slots % size, cache.layer),
        v=_write(cache.v, v, page, slots % size, cache.layer),
    )
    if context.fresh:
        return cache, k, v, seen_here(context, window)
    keys, values = (_read(x, context.table, cache.layer) for x in (cache.k, cache.v))
    return cache, keys, values, seen(context, jnp.arange(keys.shape[2]), context.cached_segment_ids, window)


def _flat(pages: jax.Array) -> jax.Array:
    """All pages of all layers, one after the other."""
    return pages.reshape(-1, *pages.shape[-3:])


def _number(pages: jax.Array, page: jax.Array, layer: Any) -> jax.Array:
    """The place of a layer's page among all of them."""
    return page if layer is None else page + layer * pages.shape[-4]


def _write(pages: jax.Array, new: jax.Array, page: jax.Array, place: jax.Array, layer: Any) -> jax.Array:
    """`new` `(batch, heads, seq, dim)`, each token at its `place` in its `page`, `(batch, seq)`; none where that is -1."""
    flat = _flat(pages)
    page = jnp.where(page < 0, flat.shape[0], _number(pages, page, layer))
    new = jnp.swapaxes(new, 1, 2).astype(pages.dtype)
    return flat.at[page, :, place].set(new, mode="drop").reshape(pages.shape)


def _read(pages: jax.Array, table: jax.Array, layer: Any) -> jax.Array:
    """`(batch, heads, columns * page_size, dim)`: the pages of each row; any page where it has none, which nobody sees."""
    rows, columns = table.shape
    found = jnp.take(_flat(pages), _number(pages, jnp.maximum(table, 0), layer), axis=0, mode="clip")
    return jnp.swapaxes(found, 1, 2).reshape(rows, pages.shape[-3], columns * pages.shape[-2], pages.shape[-1])
