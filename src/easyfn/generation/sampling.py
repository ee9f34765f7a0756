"""What shapes the distribution that a token is drawn from, and the draw.

Each class is one of transformers' (`generation/logits_process.py`) and keeps at least `keep` tokens of each row.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .processors import OFF, number
from .state import Logits, State


def draw(keys: jax.Array, step: Any, logits: Logits) -> jax.Array:
    """One token per row, from a stream of random numbers of the row's own key: `(batch,)` keys, `(batch, vocab)`
    logits."""
    one = lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row)
    return jax.vmap(one)(keys, logits).astype(jnp.int32)


def _best(logits: Logits, keep: int) -> jax.Array:
    """The `keep`-th largest logit of each row, `(batch, 1)`."""
    if keep == 1:
        return jnp.max(logits, axis=-1, keepdims=True)
    return jax.lax.top_k(logits, min(keep, logits.shape[-1]))[0][:, -1:]


def _softmax(logits: Logits) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


class Temperature(eqx.Module):
    """Divides the logits: below 1 sharper, above 1 flatter."""

    temperature: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return logits / number(self.temperature), state


class TopH(eqx.Module):
    """Keeps the most probable tokens up to a share of the entropy of the best hundred (Potraghloo et al. 2025)."""

    top_h: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        best = jax.lax.top_k(logits, min(100, logits.shape[-1]))[0]
        log_p = jax.nn.log_softmax(best, axis=-1)
        terms = jnp.where(jnp.isfinite(log_p), -jnp.exp(log_p) * log_p, 0.0)
        kept = jnp.cumsum(terms, axis=-1) <= jnp.sum(terms, axis=-1, keepdims=True) * number(self.top_h)
        kept = kept.at[:, 0].set(True)
        threshold = jnp.min(jnp.where(kept, best, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits < threshold, OFF, logits), state


class TopK(eqx.Module):
    """Keeps the `k` most probable tokens, and those that tie with the last of them (Fan et al. 2018)."""

    k: int = eqx.field(static=True)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return jnp.where(logits < _best(logits, self.k), OFF, logits), state


class TopP(eqx.Module):
    """Keeps the most probable tokens that together reach `top_p` (Holtzman et al. 2020)."""

    top_p: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        rising = jnp.sort(logits, axis=-1)
        dropped = jnp.cumsum(_softmax(rising), axis=-1) <= 1.0 - number(self.top_p)
        dropped = dropped.at[:, -self.keep :].set(False)
        threshold = jnp.min(jnp.where(dropped, jnp.inf, rising), axis=-1, keepdims=True)
        return jnp.where(logits < threshold, OFF, logits), state


class MinP(eqx.Module):
    """Keeps tokens at least `min_p` times as probable as the best one (Nguyen et al. 2024)."""

    min_p: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        p = _softmax(logits)
        dropped = (p < number(self.min_p) * jnp.max(p, axis=-1, keepdims=True)) & (logits < _best(logits, self.keep))
        return jnp.where(dropped, OFF, logits), state


class Typical(eqx.Module):
    """Keeps the tokens whose surprise is nearest to the expected one, up to `mass` (Meister et al. 2022)."""

    mass: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        entropy = -jnp.sum(jnp.where(jnp.isfinite(log_p), log_p * jnp.exp(log_p), 0.0), axis=-1, keepdims=True)
        strange = jnp.abs(-log_p - entropy)
        order = jnp.argsort(strange, axis=-1)
        rising = jnp.take_along_axis(strange, order, axis=-1)
        below = jnp.cumsum(jnp.take_along_axis(_softmax(logits), order, axis=-1), axis=-1) < number(self.mass)
        last = jnp.minimum(jnp.sum(below, axis=-1, keepdims=True), logits.shape[-1] - 1)
        last = jnp.maximum(last, self.keep - 1)
        return jnp.where(strange > jnp.take_along_axis(rising, last, axis=-1), OFF, logits), state


class EpsilonCutoff(eqx.Module):
    """Keeps tokens of at least this probability (Hewitt et al. 2022)."""

    epsilon: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        dropped = (_softmax(logits) < number(self.epsilon)) & (logits < _best(logits, self.keep))
        return jnp.where(dropped, OFF, logits), state


class EtaCutoff(eqx.Module):
    """As `EpsilonCutoff`, with a cutoff that falls with the entropy (Hewitt et al. 2022)."""

    epsilon: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        p, epsilon = jnp.exp(log_p), number(self.epsilon)
        entropy = -jnp.sum(jnp.where(jnp.isfinite(log_p), log_p * p, 0.0), axis=-1, keepdims=True)
        eta = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
        return jnp.where((p < eta) & (logits < _best(logits, self.keep)), OFF, logits), state


class Renormalize(eqx.Module):
    """Log probabilities in the place of logits."""

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return jax.nn.log_softmax(logits, axis=-1), state
