"""Penalties and constraints of transformers' `generation/logits_process.py`, one class each.

What they are called with: [`easyfn.State`][]. Numbers are arrays, so that another penalty compiles nothing.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .state import Logits, State

OFF = -jnp.inf


def number(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def id_array(ids: Any) -> Any:
    return np.asarray(ids, np.int32)


def _mark(shape: tuple[int, ...], ids: jax.Array) -> jax.Array:
    """Boolean `shape` (batch, vocab), true at the tokens of each row of `ids`; -1 marks nothing."""
    rows = jnp.arange(shape[0])[:, None]
    return jnp.zeros(shape, bool).at[rows, jnp.where(ids < 0, shape[1], ids)].set(True, mode="drop")


def _columns(ids: Any, logits: Logits) -> jax.Array:
    """Boolean `(1, vocab)`, true at the given ids."""
    return jnp.zeros((1, logits.shape[1]), bool).at[0, ids].set(True, mode="drop")


def _last(ids: jax.Array, length: Any) -> jax.Array:
    """The newest column of `ids`, `(batch, 1)`."""
    return jax.lax.dynamic_slice_in_dim(ids, length - 1, 1, axis=1)


def _penalise(logits: Logits, seen: jax.Array, penalty: jax.Array) -> Logits:
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


class SequenceBias(eqx.Module):
    """Adds a bias to the token that would complete a sequence; -inf forbids it."""

    groups: tuple[tuple[Any, Any, Any], ...]  # alike in length: prefixes (n, m), last tokens (n,), biases (n,)

    def __init__(self, biases: Any) -> None:
        by_length: dict[int, list[Any]] = {}
        for sequence, bias in biases:
            by_length.setdefault(len(sequence) - 1, []).append((sequence, bias))
        self.groups = tuple(
            (
                id_array([s[:-1] for s, _ in group]).reshape(len(group), m),
                id_array([s[-1] for s, _ in group]),
                np.asarray([b for _, b in group], np.float32),
            )
            for m, group in by_length.items()
        )

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        total = jnp.zeros_like(logits)
        for prefixes, last, biases in self.groups:
            m = prefixes.shape[1]
            if m == 0:
                total = total.at[:, last].set(
                    jnp.broadcast_to(jnp.asarray(biases)[None], (logits.shape[0], biases.shape[0]))
                )
            elif m <= ids.shape[1]:
                tail = jax.lax.dynamic_slice_in_dim(ids, state.length - m, m, axis=1)
                hit = jnp.all(tail[:, None, :] == prefixes[None], axis=-1) & (state.length >= m)
                total = total.at[:, last].add(jnp.where(hit, jnp.asarray(biases)[None], 0.0))
        return logits + total, state


class RepetitionPenalty(eqx.Module):
    """Divides the positive and multiplies the negative logits of tokens that occurred, the prompt's included
    (padding is not)."""

    penalty: Any

    def init(self, ids: jax.Array, vocab_size: int) -> jax.Array:
        return _mark((ids.shape[0], vocab_size), ids)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        seen = state.memory | _mark(logits.shape, _last(ids, state.length))
        return _penalise(logits, seen, number(self.penalty)), state._replace(memory=seen)


class EncoderRepetitionPenalty(eqx.Module):
    """Raises the logits of the tokens of the model's input."""

    penalty: Any
    encoder_ids: jax.Array  # (batch, length), -1 in padding

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return _penalise(logits, _mark(logits.shape, self.encoder_ids), 1.0 / number(self.penalty)), state


class FrequencyPenalty(eqx.Module):
    """Lowers the logit of every generated token by `frequency` times its count and by `presence` once; the prompt is
    free."""

    frequency: Any
    presence: Any

    def init(self, ids: jax.Array, vocab_size: int) -> jax.Array:
        return jnp.zeros((ids.shape[0], vocab_size), jnp.float32)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        newest = jnp.where(state.new > 0, _last(ids, state.length), -1)
        count = state.memory + _mark(logits.shape, newest)
        lowered = logits - number(self.frequency) * count - number(self.presence) * (count > 0)
        return lowered, state._replace(memory=count)


class NoRepeatNGram(eqx.Module):
    """Forbids the token that would repeat a run of `size` tokens of `source` (or else of the row itself)."""

    size: int = eqx.field(static=True)
    source: jax.Array | None = None  # (batch, length): transformers' encoder_no_repeat_ngram_size

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        n, text = self.size, ids if self.source is None else self.source
        windows = text.shape[1] - n + 1
        if windows < 1 or ids.shape[1] < n:
            return logits, state
        tail = jax.lax.dynamic_slice_in_dim(ids, state.length - (n - 1), n - 1, axis=1) if n > 1 else ids[:, :0]
        hit = jnp.full((text.shape[0], windows), state.length >= n - 1)
        for j in range(n - 1):
            token = text[:, j : j + windows]
            hit = hit & (token == tail[:, j : j + 1]) & (token >= 0)
        banned = jnp.where(hit, text[:, n - 1 :], -1)
        return jnp.where(_mark(logits.shape, banned), OFF, logits), state


class MinLength(eqx.Module):
    """No row ends before it has `length` columns, prompt and padding included."""

    length: int
    eos: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return jnp.where(_columns(self.eos, logits) & (state.length < self.length), OFF, logits), state


class ForcedTokens(eqx.Module):
    """Forces one of `tokens` when `length` columns are written: the first token after a start token, or the last
    one."""

    length: int
    tokens: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        forced = jnp.where(_columns(self.tokens, logits), 0.0, OFF)
        return jnp.where(state.length == self.length, forced, logits), state


class RemoveInvalid(eqx.Module):
    """Replaces NaN by 0 and infinities by the largest finite numbers."""

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        limit = float(np.finfo(np.float32).max)
        return jnp.nan_to_num(logits, nan=0.0, posinf=limit, neginf=-limit), state


class ExponentialDecay(eqx.Module):
    """Raises the logits of the ids that end a row, ever faster, once `start` tokens were generated."""

    start: Any
    factor: Any
    eos: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        beyond = state.new - self.start
        boost = jnp.abs(logits) * (number(self.factor) ** jnp.maximum(beyond, 0).astype(jnp.float32) - 1.0)
        boosted = _columns(self.eos, logits) & (beyond > 0) & jnp.isfinite(logits)
        return jnp.where(boosted, logits + boost, logits), state


class SuppressTokens(eqx.Module):
    """Forbids tokens: always, or only when `length` columns are written."""

    tokens: Any
    length: int | None = None

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        now = True if self.length is None else state.length == self.length
        return jnp.where(_columns(self.tokens, logits) & now, OFF, logits), state
