"""`init_paged_cache`: how many pages there are, and the empty cache of them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..core.verb import verb
from ..nn.cache.axes import places
from ..nn.cache.cache import Cache, layer_cache
from ..nn.cache.paged import paged
from ..nn.heads import max_positions


@verb
def init_paged_cache(
    model: Any,
    *,
    page_size: int = 16,
    num_pages: int | None = None,
    memory_fraction: float | None = None,
    max_model_length: int | None = None,
    dtype: Any = None,
    batch_size: int = 1,
) -> Cache:
    """An empty cache whose keys and values lie in pages of `page_size` tokens that the rows of a batch share out.

    - `num_pages`: how many pages each layer has; or `memory_fraction`, the share of the memory that is free now (of
      the device, or of the machine where the device is the processor) that all of them take. By default there are as
      many as `batch_size` rows of `max_model_length` tokens fill.
    - `max_model_length`: the longest row, by default as many tokens as the config says that the model reads.

    The cache's `table` `(batch_size, pages of the longest row)` says which pages a row has, in the order of its tokens, -1
    being none; it is empty, and whoever runs rows fills it in. A narrower table makes a narrower pass: attention reads
    all of its columns. `length` is one number for each row. What has no pages, because it does not grow with the row,
    is kept by row as in [`easyfn.init_cache`][]: sliding windows shorter than `max_model_length`, recurrent states, what
    an encoder said. [`easyfn.Engine`][] does all of this.

    Raises `ValueError` where both or impossible sizes are given.

    ```python
    import dataclasses, jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    cache = ef.init_paged_cache(model, page_size=4, num_pages=6, max_model_length=16, batch_size=2)
    cache = dataclasses.replace(cache, table=jnp.array([[5, 0, -1, -1], [2, 3, -1, -1]]))
    out = ef.forward(model, jnp.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]]), cache=cache)
    assert out.cache.length.tolist() == [6, 6]
    ```
    """
    from ..core.dtype import dtype_of

    if num_pages is not None and memory_fraction is not None:
        raise ValueError("init_paged_cache: num_pages and memory_fraction say a thing twice; give one")
    length = longest(model, max_model_length)
    for name, value in (("page_size", page_size), ("num_pages", num_pages), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"init_paged_cache: {name}={value} must be at least 1")
    dtype = dtype or dtype_of(model)
    columns = -(-length // page_size)
    empty = lambda rows: layer_cache(model, rows, length, dtype)
    shapes = jax.eval_shape(lambda: empty(batch_size))
    if shapes is None:
        raise layer_cache.missing(model, f"No part of {type(model).__name__} keeps a cache.")
    if memory_fraction is not None:
        if not 0 < memory_fraction < 1:
            raise ValueError(f"init_paged_cache: memory_fraction={memory_fraction} must be between 0 and 1")
        one = page_bytes(shapes, page_size)
        num_pages = int(memory_fraction * free_memory()) // one if one else 1
        if num_pages < 1:
            raise ValueError(
                f"init_paged_cache: {memory_fraction} of the free memory, {free_memory()} bytes, holds no page of {one} "
                "bytes; give more, or a smaller page_size"
            )
    pages = batch_size * columns if num_pages is None else num_pages
    convert = lambda rows: _in_pages(empty(rows), pages, page_size)
    layers = jax.jit(convert, static_argnums=0)(batch_size)  # compiled, the dense form is never made
    zeros = jnp.zeros((batch_size,), jnp.int32)
    return Cache(
        layers,
        jnp.zeros((batch_size, columns * page_size), jnp.int32),
        zeros,
        zeros,
        places(layers, "batch"),
        jnp.full((batch_size, columns), -1, jnp.int32),
    )


def longest(model: Any, max_model_length: int | None) -> int:
    """The longest row: what was asked, within the positions that the model has learned."""
    limit = max_positions(model)
    if max_model_length is None:
        known = limit or getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if known is None:
            raise ValueError(
                f"max_model_length= is needed: the config of {type(model).__name__} names no longest sequence"
            )
        return int(known)
    if max_model_length < 1:
        raise ValueError(f"max_model_length={max_model_length} must be at least 1")
    if limit is not None and max_model_length > limit:
        raise ValueError(f"max_model_length={max_model_length}, and the model has learned {limit} positions")
    return max_model_length


def _in_pages(layers: Any, num_pages: int, page_size: int) -> Any:
    known = lambda node: paged.knows(type(node))
    change = lambda node: paged(node, num_pages, page_size) if known(node) else node
    return jax.tree.map(change, layers, is_leaf=known)


def page_bytes(layers: Any, page_size: int) -> int:
    """What one more page takes in all layers together."""

    def total(pages: int) -> int:
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), layers)
        found = jax.eval_shape(lambda: _in_pages(zeros(), pages, page_size))
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(found))

    return total(2) - total(1)


def free_memory() -> int:
    """Bytes: what the first device has left of its own memory, or else the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
