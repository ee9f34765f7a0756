"""Compressed keys (DeepSeek-V4, 2026): of every so many tokens one entry that attention reads in their stead.

A window is `rate` tokens of a document, padding not counted. Its entry is a mean of what is made of each of them, by weights for
every number, softmax of a gate; normed, and rotated to the place of the window's first token. An entry is there for the last
token of its window and those after it.

Of a row that grows, what is kept are its entries and its last tokens, of a window that is not full yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...core.frozen import Frozen
from ...core.weight import HALF, Slot, Weight, dense, slots
from ..cache.axes import cache_axes
from ..cache.cache import Held, empty_slots, rewindable, stored
from ..cache.int8 import Int8Slots
from ..context import Context
from ..linear import Linear, declare
from ..norm import RMSNorm
from ..recurrent.state import Documents
from .rope import rope_table, rotate

NEVER = jnp.iinfo(jnp.int32).max


class Windows(eqx.Module):
    """Of every entry of a row its document, and the number there of its last token; how many entries and, of the last document,
    tokens there are."""

    owner: jax.Array  # [batch, entries] int32, 0 = no entry
    ends: jax.Array  # [batch, entries] int32
    count: jax.Array  # [batch] int32
    number: jax.Array  # [batch] int32
    segment_ids: jax.Array  # [batch] int32


class Compressed(eqx.Module):
    """The entries of a compressor, and what it made of the last tokens."""

    entries: Held  # [batch, 1, entries, dim]
    values: jax.Array  # [batch, tokens, width]
    gates: jax.Array  # [batch, tokens, width]


@cache_axes.register(Windows)
def _(cache: Windows) -> tuple[str, ...]:
    return ("batch slots",) * 2 + ("batch",) * 3


@cache_axes.register(Compressed)
def _(cache: Compressed) -> tuple[str, ...]:
    slots = "batch heads slots"
    held = (f"{slots} dim", slots) if isinstance(cache.entries, Int8Slots) else (f"{slots} dim",)
    return (*held, *("batch inputs channels",) * 2)


@rewindable.register(Windows, Compressed)
def _(cache: Any) -> bool:
    return False  # a window that is full has let go of its tokens


def empty_windows(batch_size: int, entries: int) -> Windows:
    table = lambda value: jnp.full((batch_size, entries), value, jnp.int32)
    return Windows(table(0), table(NEVER), *(jnp.zeros((batch_size,), jnp.int32) for _ in range(3)))


class Filled(eqx.Module):
    """Which windows the tokens of a pass fill, and what its queries see: shared by all compressors of a layer."""

    number: jax.Array  # [batch, seq], of each token in its document
    owner: jax.Array  # [batch, entries], of what queries see: as in `Windows`
    ends: jax.Array  # [batch, entries]
    kept: Windows | None  # of the row after the pass, where there is a cache
    order: jax.Array  # [batch, seq], the columns of the tokens, padding behind them
    total: jax.Array  # [batch], how many tokens there are
    last: jax.Array  # [batch, new], of each window that is filled its last token, counted along `order`
    place: jax.Array  # [batch, new], which entry of the row it is; out of range where there is none
    first: jax.Array  # [batch, new], the number of its first token
    here: bool = eqx.field(static=True)  # queries see the entries of this pass only

    @classmethod
    def of(cls, context: Context, rate: int, before: Windows | None) -> Filled:
        segments = context.segment_ids
        batch, length = segments.shape
        here = before is None or context.fresh
        old = empty_windows(batch, 1) if before is None else before
        documents = Documents.of(segments, old.segment_ids)
        real, index = documents.real, documents.index
        order = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
        border = index != jnp.pad(index[:, :-1], ((0, 0), (1, 0)))
        start = lax.cummax(jnp.where(border, order, 0), axis=1)
        number = jnp.maximum(order - start + jnp.where(index == 0, old.number[:, None], 0), 0)
        full = real & (number % rate == rate - 1)
        upto = jnp.cumsum(full, axis=1, dtype=jnp.int32)
        new = max(length // rate, 1) if here else (length - 1) // rate + 1
        row, into = jnp.arange(batch)[:, None], jnp.where(full, upto - 1, new)
        gather = lambda fill, value: jnp.full((batch, new), fill, jnp.int32).at[row, into].set(value, mode="drop")
        last, owner, ends = gather(0, order), gather(0, segments), gather(NEVER, number)
        place = jnp.where(owner > 0, old.count[:, None] + jnp.arange(new, dtype=jnp.int32)[None], NEVER)
        kept = None
        if before is not None:
            enter = lambda held, value: held.at[row, place].set(value, mode="drop")
            begun = jnp.where(jnp.any(real, axis=1), number[:, -1] + 1, before.number)
            count = before.count + upto[:, -1]
            kept = Windows(enter(before.owner, owner), enter(before.ends, ends), count, begun, documents.last)
        seen = (owner, ends) if here or kept is None else (kept.owner, kept.ends)
        columns = jnp.argsort(~real, axis=1, stable=True)
        total = jnp.sum(real, axis=1, dtype=jnp.int32)
        first = jnp.where(owner > 0, ends - (rate - 1), 0)
        return cls(number, *seen, kept, columns, total, last, place, first, here)


class Compressor(eqx.Module):
    """Makes entries of `dim` numbers of the windows of `rate` tokens.

    `overlapping`: a token says two things, one for the entry of its window and one for the next one's, whose mean is of both:
    of twice as many tokens. `rope_parameters`, `rope_dim` and `limit` are those of the table that turns the last numbers of an
    entry: windows are at places that the table of a pass may not have.

    Called with `(x, filled, cache)`, it returns the entries that the pass sees `(batch, 1, entries, dim)`, and the cache.
    """

    kv_proj: Linear
    gate_proj: Linear
    position_bias: Weight
    kv_norm: RMSNorm
    dim: int = eqx.field(static=True)
    rate: int = eqx.field(static=True)
    overlapping: bool = eqx.field(static=True)
    rope_parameters: Frozen = eqx.field(static=True)
    rope_dim: int = eqx.field(static=True)
    limit: int = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        dim: int,
        rate: int,
        *,
        overlapping: bool,
        eps: float,
        rope_parameters: Mapping[str, Any],
        rope_dim: int,
        limit: int,
    ) -> None:
        width = dim * (2 if overlapping else 1)
        self.kv_proj = Linear(hidden_size, width, axes=(None, "embed"))
        self.gate_proj = Linear(hidden_size, width, axes=(None, "embed"))
        self.position_bias = declare(rate, width)
        self.kv_norm = RMSNorm(dim, eps, float32=HALF)
        self.dim = dim
        self.rate = rate
        self.overlapping = overlapping
        self.rope_parameters, self.rope_dim, self.limit = Frozen(rope_parameters), rope_dim, limit

    @property
    def span(self) -> int:
        """The tokens that have a part in an entry."""
        return self.rate * (2 if self.overlapping else 1)

    def __call__(self, x: jax.Array, filled: Filled, cache: Compressed | None) -> tuple[Held, Compressed | None]:
        values, gates = self.kv_proj(x), self.gate_proj(x)
        if cache is None:
            empty = jnp.zeros((x.shape[0], self.span - 1, values.shape[-1]), values.dtype)
            held = empty, empty
        else:
            held = cache.values, cache.gates
        along = lambda index: index[..., None]
        ordered = [
            jnp.concatenate([old.astype(new.dtype), jnp.take_along_axis(new, along(filled.order), axis=1)], axis=1)
            for old, new in zip(held, (values, gates), strict=True)
        ]
        entries = self._entries(ordered[0], ordered[1], filled)
        if cache is None:
            return entries, None
        kept = along(filled.total[:, None] + jnp.arange(self.span - 1)[None])
        rest = [
            jnp.take_along_axis(new, kept, axis=1).astype(old.dtype) for old, new in zip(held, ordered, strict=True)
        ]
        row = jnp.arange(x.shape[0])[:, None]

        def enter(buffer: jax.Array, new: jax.Array) -> jax.Array:
            return buffer.at[row, :, filled.place].set(jnp.swapaxes(new, 1, 2), mode="drop")

        into = jax.tree.map(enter, cache.entries, stored(cache.entries, entries))
        cache = Compressed(into, rest[0], rest[1])
        return (entries if filled.here else cache.entries), cache

    def _entries(self, values: jax.Array, gates: jax.Array, filled: Filled) -> jax.Array:
        """The entries of the windows that the pass fills `(batch, 1, new, dim)`, of tokens that lie one after the other."""
        batch, new = filled.last.shape
        tokens = filled.last[..., None] + jnp.arange(self.span)[None, None]  # the oldest is `span - 1` before the last
        pick = lambda a: jnp.take_along_axis(a, tokens.reshape(batch, -1)[..., None], axis=1).reshape(
            batch, new, self.span, -1
        )
        bias = dense(self.position_bias).astype(jnp.float32)
        dtype = values.dtype
        values, gates = pick(values).astype(jnp.float32), pick(gates).astype(jnp.float32)
        if self.overlapping:  # of the window before the first part, of the own one the second
            both = lambda a: jnp.concatenate(
                [a[:, :, : self.rate, : self.dim], a[:, :, self.rate :, self.dim :]], axis=2
            )
            values, bias = both(values), jnp.concatenate([bias[:, : self.dim], bias[:, self.dim :]])
            gates = both(gates) + bias[None, None]
            there = (jnp.arange(self.span) >= self.rate)[None, None] | (filled.first > 0)[..., None]
            gates = jnp.where(there[..., None], gates, -jnp.inf)
        else:
            gates = gates + bias[None, None]
        mean = jnp.sum(values * jax.nn.softmax(gates, axis=2), axis=2)
        table = rope_table(self.rope_parameters, self.rope_dim, self.limit, filled.first)
        return rotate_last(self.kv_norm(mean.astype(dtype))[:, None], table)


def rotate_last(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """As `rotate` of neighbours, of the last entries of each head."""
    rest = x.shape[-1] - 2 * table[0].shape[-1]
    if not rest:
        return rotate(x, table, interleaved=True)
    return jnp.concatenate([x[..., :rest], rotate(x[..., rest:], table, interleaved=True)], axis=-1)


@slots.register(Compressor)
def _(compressor: Compressor) -> dict[str, Slot]:
    return {"position_bias": Slot("other", (None, None), "zeros", HALF)}


def empty_compressed(compressor: Compressor, batch_size: int, entries: int, dtype: Any) -> Compressed:
    """Room for `entries` of each row."""
    kind = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32
    width = compressor.dim * (2 if compressor.overlapping else 1)
    values, gates = (jnp.zeros((batch_size, compressor.span - 1, width), kind) for _ in range(2))
    return Compressed(empty_slots((batch_size, 1, entries, compressor.dim), dtype), values, gates)
