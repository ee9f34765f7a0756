"""Embeddings of n-grams (Qwen4-Exp, 2026): a token and those before it, hashed into tables with a prime number of rows each.

The hash is that of the checkpoint's training: products of ids and odd numbers of up to 63 bits, joined by exclusive or, modulo
the prime. JAX has 32 bits unless told otherwise, so numbers are four digits of 16 bits here.
"""

from __future__ import annotations

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..linear import Embedding
from .state import Documents

_WORD = (1 << 64) - 1
_DIGIT = 0xFFFF


def _scrambled(value: int) -> int:
    """SplitMix64 (Steele et al. 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


def multipliers(vocab_size: int, size: int, layer: int, seed: int) -> tuple[int, ...]:
    """An odd number for each place of an n-gram, whose product with an id has no more than 63 bits."""
    half = max(1, ((1 << 63) - 1) // max(vocab_size, 1) // 2)
    start = seed + 10007 * layer
    drawn = (_scrambled((start + 0x9E3779B97F4A7C15 * (i + 1)) & _WORD) for i in range(size))
    return tuple(2 * (value % half) + 1 for value in drawn)


@functools.cache
def primes_from(start: int, count: int) -> tuple[int, ...]:
    """The first `count` primes that are not less than `start`."""
    found: list[int] = []
    number = max(start, 2)
    while len(found) < count:
        if all(number % d for d in range(2, math.isqrt(number) + 1)):
            found.append(number)
        number += 1
    return tuple(found)


def _product(ids: jax.Array, factor: int) -> list[jax.Array]:
    """The four lowest digits of `ids * factor`, lowest first."""
    u32 = jnp.uint32
    ids = ids.astype(u32)
    parts = (ids & _DIGIT, ids >> 16)
    digits = [jnp.zeros_like(ids) for _ in range(4)]
    for i, part in enumerate(parts):
        for j in range(4 - i):
            product = part * u32((factor >> (16 * j)) & _DIGIT)
            digits[i + j] = digits[i + j] + (product & _DIGIT)
            if i + j + 1 < 4:
                digits[i + j + 1] = digits[i + j + 1] + (product >> 16)
    for i in range(3):
        digits[i + 1] = digits[i + 1] + (digits[i] >> 16)
    return [digit & _DIGIT for digit in digits]


def _remainder(digits: list[jax.Array], sizes: np.ndarray) -> jax.Array:
    """The number of `digits` modulo each of `sizes`, which get an axis at the end."""
    low, high = (digits[i] | (digits[i + 1] << 16) for i in (0, 2))
    step = 32 - int(sizes.max()).bit_length()  # so many bits at a time leave room in 32
    modulus = jnp.asarray(sizes, jnp.uint32).reshape((1,) * low.ndim + (-1,))
    rest = jnp.zeros((*low.shape, len(sizes)), jnp.uint32)
    for top in range(64, 0, -step):
        at, width = max(top - step, 0), min(step, top)
        if at >= 32:
            bits = high >> (at - 32)
        elif at + width <= 32:
            bits = low >> at
        else:
            bits = (low >> at) | (high << (32 - at))
        bits = bits & jnp.uint32((1 << width) - 1)
        rest = ((rest << width) | bits[..., None]) % modulus
    return rest


class NGramEmbedding(eqx.Module):
    """For every token the rows of `heads` tables for the n-gram of each order from 2 to `size` that it ends, side by side.

    A document begins as if the token `end` stood before it, and none before an `end` is seen. The tables are parts of
    `ngram_embedding`, with rows to spare up to a multiple of `divisor`. `layer` counts the layers that have such tables.
    """

    ngram_embedding: Embedding
    size: int = eqx.field(static=True)
    end: int = eqx.field(static=True)
    factors: tuple[int, ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        size: int,
        heads: int,
        base: int,
        divisor: int,
        layer: int,
        seed: int,
        end: int,
    ) -> None:
        count = (size - 1) * heads
        if count < 1 or width % count:
            raise ValueError(f"n-grams: {width} entries do not divide into the {count} tables of all orders")
        self.factors = multipliers(vocab_size, size, layer, seed)
        self.sizes = primes_from(base, (layer + 1) * count)[layer * count :]
        rows = -(-sum(self.sizes) // divisor) * divisor
        if max(self.sizes) >= 1 << 31 or rows >= 1 << 31:
            raise ValueError(f"n-grams: {rows} rows are more than indices of 32 bits tell apart")
        self.ngram_embedding = Embedding(rows, width // count, axes=(None, None))
        self.size, self.end = size, end

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first row of each table."""
        return tuple(int(n) for n in np.cumsum((0, *self.sizes[:-1])))

    def __call__(self, ids: jax.Array, documents: Documents, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`ids` `(batch, seq)` after the ids `before` `(batch, size - 1)`; also the last ids, for what comes after."""
        heads = len(self.sizes) // (self.size - 1)
        shifted, last = self._shifted(ids, documents, before)
        digits = _product(shifted[0], self.factors[0])
        found = []
        for order in range(1, self.size):
            digits = [a ^ b for a, b in zip(digits, _product(shifted[order], self.factors[order]), strict=True)]
            here = slice((order - 1) * heads, order * heads)
            rows = _remainder(digits, np.array(self.sizes[here])).astype(jnp.int32)
            found.append(rows + jnp.asarray(self.offsets[here], jnp.int32)[None, None])
        vectors = self.ngram_embedding(jnp.concatenate(found, axis=-1))
        return vectors.reshape(*ids.shape, -1), last

    def _shifted(self, ids: jax.Array, documents: Documents, before: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """Of every token itself and the ones before it, padding looked through."""
        width = before.shape[1]
        order = jnp.argsort(~documents.real, axis=1, stable=True)  # tokens first
        behind = lambda old, new: jnp.concatenate([old, jnp.take_along_axis(new, order, axis=1)], axis=1)
        line, index = behind(before, ids), behind(jnp.zeros_like(before), documents.index)
        place = jnp.cumsum(documents.real, axis=1, dtype=jnp.int32) - 1 + width
        at = lambda a, where: jnp.take_along_axis(a, where, axis=1)
        found, open_ = [ids], jnp.ones(ids.shape, bool)
        for shift in range(1, self.size):
            where = jnp.maximum(place - shift, 0)
            value = at(line, where)
            open_ = open_ & (value != self.end) & (at(index, where) == documents.index)
            found.append(jnp.where(open_, value, self.end))
        kept = jnp.sum(documents.real, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(width, dtype=jnp.int32)[None]
        same = at(index, kept) == documents.index[:, -1:]
        return found, jnp.where(same, at(line, kept), self.end)
