"""The context of a pass, made from its masks, positions and cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.multihost import on_host
from ..core.verb import verb
from ..nn.cache.cache import Cache, order_of, write
from ..nn.context import Context
from ..nn.encoder import TextEncoder
from ..nn.towers import TextTower


def make_context(
    shape: tuple[int, int],
    *,
    attention_mask: Any = None,
    position_ids: Any = None,
    segment_ids: Any = None,
    cache: Cache | None = None,
    fresh: bool = False,
    position_axes: int = 1,
    **more: Any,
) -> tuple[Context, Cache | None]:
    """The context of a pass over `(batch, seq)` tokens, and the cache with the new tokens' padding marked in it."""
    batch, length = shape
    mask = _mask(attention_mask, shape, cache)
    if segment_ids is None:
        segments = jnp.ones(shape, jnp.int32) if mask is None else (mask != 0).astype(jnp.int32)
        counted = jnp.cumsum(segments, axis=1) - 1
    else:
        segments = _shaped("segment_ids", segment_ids, shape).astype(jnp.int32)
        segments = segments if mask is None else jnp.where(mask != 0, segments, 0)
        counted = _within_segments(segments)
    offset = jnp.zeros((batch, 1), jnp.int32) if cache is None else cache.positions[:, None]
    positions = (
        jnp.maximum(counted, 0) + offset if position_ids is None else _positions(position_ids, shape, position_axes)
    )
    start = jnp.zeros((), jnp.int32) if cache is None else cache.length
    slots = start[..., None] + jnp.arange(length, dtype=jnp.int32).reshape((1,) * start.ndim + (length,))
    order = slots if cache is None and mask is None and segment_ids is None else order_of(segments)
    if cache is not None:
        places = jnp.arange(cache.segment_ids.shape[1], dtype=jnp.int32)[None]
        held = jnp.sum((cache.segment_ids > 0) & (places < jnp.reshape(start, (-1, 1))), axis=1, dtype=jnp.int32)
        order = order + held[:, None]
        size = cache.segment_ids.shape[1]
        if batch != cache.segment_ids.shape[0]:
            raise ValueError(f"the cache holds {cache.segment_ids.shape[0]} rows and the input has {batch}")
        used = 0 if isinstance(cache.length, jax.core.Tracer) else int(np.max(on_host(cache.length)))
        if used + length > size:
            raise ValueError(
                f"the cache has {size} slots, {used} of them used, and {length} more tokens do not fit; "
                "make it longer: ef.init_cache(model, batch_size, max_length)"
            )
        cache = dataclasses.replace(cache, segment_ids=write(cache.segment_ids, segments, start, axis=1))
    context = Context(
        position_ids=positions,
        segment_ids=segments,
        slots=slots,
        order=order,
        cached_segment_ids=None if cache is None else cache.segment_ids,
        table=None if cache is None else cache.table,
        fresh=fresh,
        **more,
    )
    return context, cache


@verb
def positions(model: Any, context: Context, given: Mapping[str, Any], start: Any) -> jax.Array:
    """The positions of a pass whose caller gives none: `(batch, seq)`, or `(3, batch, seq)` where images lie in them.

    By default those of the context, tokens counted from `start` `(batch, 1)`; a head asks the model under it.
    """
    return positions(model.model, context, given, start) if hasattr(model, "model") else context.position_ids


@positions.register(TextEncoder)
def _(model: TextEncoder, context: Context, given: Mapping[str, Any], start: Any) -> jax.Array:
    """Where the embeddings name a padding, rows of their table: the tokens of its document up to this one, after it."""
    padding, ids = getattr(model.embeddings, "padding", None), given.get("input_ids")
    if padding is None:
        return context.position_ids
    if ids is None:
        return context.position_ids + (padding + 1)
    segments = context.segment_ids
    real = (jnp.asarray(ids) != padding) & (segments > 0)
    place = jnp.arange(segments.shape[1])
    before = (segments[:, :, None] == segments[:, None, :]) & (place[None, :, None] >= place[None, None, :])
    counted = jnp.sum(before & real[:, None, :], axis=2, dtype=jnp.int32)
    return jnp.where(real, counted, 0) + padding


@verb
def restarts(model: Any) -> bool:
    """Whether a position that is not above the one before it begins a document, in rows without a mask and a cache.

    By default, as in the decoders of transformers (`find_packed_sequence_indices` of its masking_utils.py, for which a gap
    begins one, too); a head asks the model under it.
    """
    return restarts(model.model) if hasattr(model, "model") else True


@restarts.register(TextEncoder, TextTower)
def _(model: TextEncoder | TextTower) -> bool:
    return False


def documents(position_ids: Any, shape: tuple[int, int]) -> jax.Array | None:
    """The segments of rows that are packed and say so by their positions alone; `None` of one document each, if that is known."""
    where = _positions(position_ids, shape, 1)
    if not isinstance(where, jax.core.Tracer) and np.all(np.diff(on_host(where), axis=1) > 0):
        return None
    begins = jnp.pad(where[:, 1:] <= where[:, :-1], ((0, 0), (1, 0)))
    return 1 + jnp.cumsum(begins, axis=1, dtype=jnp.int32)


def advance(cache: Cache, context: Context, layers: Any) -> Cache:
    """The cache after a pass."""
    seen = context.segment_ids > 0
    places = context.position_ids
    places = jnp.max(places, axis=0) if places.ndim == 3 else places  # of several axes the one that is furthest
    positions = jnp.max(jnp.where(seen, places + 1, 0), axis=1)
    return dataclasses.replace(
        cache,
        layers=layers,
        positions=jnp.where(jnp.any(seen, axis=1), positions, cache.positions).astype(jnp.int32),
        length=cache.length + context.slots.shape[-1],
    )


def _shaped(name: str, value: Any, shape: tuple[int, int]) -> jax.Array:
    value = jnp.asarray(value)
    if value.shape != shape:
        raise ValueError(f"{name} must have the shape {shape} of the tokens, not {value.shape}")
    return value


def _positions(value: Any, shape: tuple[int, int], axes: int) -> jax.Array:
    value = jnp.asarray(value, jnp.int32)
    if axes > 1 and value.shape == (axes, *shape):
        return value
    if value.shape not in (shape, (1, shape[1]), (shape[1],)):
        more = f" or {(axes, *shape)}" if axes > 1 else ""
        raise ValueError(f"position_ids must have the shape {shape} of the tokens{more}, not {value.shape}")
    return jnp.broadcast_to(value.reshape(-1, shape[1]), shape)


def _mask(value: Any, shape: tuple[int, int], cache: Cache | None) -> jax.Array | None:
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.ndim != 2:
        raise ValueError(f"attention_mask must have shape (batch, seq), not {value.shape}; use segment_ids for packing")
    if not isinstance(value, jax.core.Tracer) and value.dtype != bool and np.any(on_host(value) < 0):
        raise ValueError("attention_mask is 1 for tokens and 0 for padding: it is not added to the scores")
    if cache is not None and value.shape[1] > shape[1]:
        value = value[:, -shape[1] :]  # transformers' form: the past included
    return _shaped("attention_mask", value, shape)


def _within_segments(segments: jax.Array) -> jax.Array:
    """For each token, how many of its document come before it."""
    index = jnp.broadcast_to(jnp.arange(segments.shape[1])[None], segments.shape)
    changed = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(changed, index, 0), axis=1)
