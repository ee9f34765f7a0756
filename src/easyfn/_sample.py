"""Processors: small pure functions that change the logits of the next token, inside the compiled loop.

A processor is called as `(state, ids, logits) -> (logits, state)`:

- `logits`: float32, `(batch, vocab)`.
- `ids`: int32, `(batch, max_length)`: prompt and tokens so far, and -1 wherever there is no token (padding, rows
  that ended, places to come). So nothing ever counts padding.
- `state`: a [`State`][easyfn.State]: how many columns are written, how many the prompt has, and the processor's own
  memory.

Any function is one; a processor with memory has a method `init(ids, vocab_size) -> memory`, whose arrays lead with
the batch axis. Those below are transformers' (`generation/logits_process.py`), one class each; their numbers are
arrays, so that another temperature compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._generation_config import GenerationConfig, _ids

Logits = jax.Array
Processor = Callable[..., tuple[jax.Array, Any]]
_OFF = -jnp.inf


class State(NamedTuple):
    """What a processor is told, and what it may remember.

    A processor is any function `(state, ids, logits) -> (logits, state)`, with float32 `logits` `(batch, vocab)` and
    int32 `ids` `(batch, max_length)`: prompt and tokens so far, -1 where there is no token. One with memory has a
    method `init(ids, vocab_size) -> memory`, whose arrays lead with the batch axis, and returns
    `state._replace(memory=...)`.

    ```python
    import jax, easyfn as ef
    config = ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, num_key_value_heads=2)
    model = ef.init(config, key=jax.random.key(0))

    def never_nine(state, ids, logits):
        return logits.at[:, 9].set(-jax.numpy.inf), state

    out = ef.generate(model, jax.numpy.array([[1, 2]]), max_new_tokens=4, processors=[never_nine])
    assert not (out.sequences == 9).any()
    ```
    """

    length: Any  # [] int32: the columns of `ids` that are written
    prompt_length: Any  # of these, the prompt's
    memory: Any = None  # the processor's own, from its `init`

    @property
    def new(self) -> Any:
        """How many tokens were generated so far."""
        return self.length - self.prompt_length


def initial(processors: tuple[Any, ...], ids: jax.Array, vocab_size: int) -> tuple[Any, ...]:
    """The memories of processors before the first token."""
    return tuple(p.init(ids, vocab_size) if hasattr(p, "init") else None for p in processors)


def process(
    processors: tuple[Any, ...],
    memories: tuple[Any, ...],
    ids: jax.Array,
    logits: Logits,
    length: Any,
    prompt_length: Any,
) -> tuple[Logits, tuple[Any, ...]]:
    """All processors in turn."""
    new = []
    for processor, memory in zip(processors, memories, strict=True):
        logits, state = processor(State(length, prompt_length, memory), ids, logits)
        new.append(state.memory)
    return logits, tuple(new)


def draw(keys: jax.Array, step: Any, logits: Logits) -> jax.Array:
    """One token per row, from a stream of random numbers of the row's own key: `(batch,)` keys, `(batch, vocab)`
    logits."""
    one = lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row)
    return jax.vmap(one)(keys, logits).astype(jnp.int32)


# --- helpers


def _number(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def _id_array(ids: Any) -> Any:
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


def _best(logits: Logits, keep: int) -> jax.Array:
    """The `keep`-th largest logit of each row, `(batch, 1)`."""
    if keep == 1:
        return jnp.max(logits, axis=-1, keepdims=True)
    return jax.lax.top_k(logits, min(keep, logits.shape[-1]))[0][:, -1:]


def _softmax(logits: Logits) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


def _penalise(logits: Logits, seen: jax.Array, penalty: jax.Array) -> Logits:
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


# --- constraints and penalties, in transformers' order


class SequenceBias(eqx.Module):
    """Adds a bias to the token that would complete a sequence; -inf forbids it."""

    groups: tuple[tuple[Any, Any, Any], ...]  # alike in length: prefixes (n, m), last tokens (n,), biases (n,)

    def __init__(self, biases: Any) -> None:
        by_length: dict[int, list[Any]] = {}
        for sequence, bias in biases:
            by_length.setdefault(len(sequence) - 1, []).append((sequence, bias))
        self.groups = tuple(
            (
                _id_array([s[:-1] for s, _ in group]).reshape(len(group), m),
                _id_array([s[-1] for s, _ in group]),
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
        return _penalise(logits, seen, _number(self.penalty)), state._replace(memory=seen)


class EncoderRepetitionPenalty(eqx.Module):
    """Raises the logits of the tokens of the model's input."""

    penalty: Any
    encoder_ids: jax.Array  # (batch, length), -1 in padding

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return _penalise(logits, _mark(logits.shape, self.encoder_ids), 1.0 / _number(self.penalty)), state


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
        lowered = logits - _number(self.frequency) * count - _number(self.presence) * (count > 0)
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
        return jnp.where(_mark(logits.shape, banned), _OFF, logits), state


class MinLength(eqx.Module):
    """No row ends before it has `length` columns, prompt and padding included."""

    length: int
    eos: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return jnp.where(_columns(self.eos, logits) & (state.length < self.length), _OFF, logits), state


class ForcedTokens(eqx.Module):
    """Forces one of `tokens` when `length` columns are written: the first token after a start token, or the last
    one."""

    length: int
    tokens: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        forced = jnp.where(_columns(self.tokens, logits), 0.0, _OFF)
        return jnp.where(state.length == self.length, forced, logits), state


class RemoveInvalid(eqx.Module):
    """Replaces NaN by 0 and infinities by the largest finite numbers."""

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        limit = float(np.finfo(np.float32).max)
        return jnp.nan_to_num(logits, nan=0.0, posinf=limit, neginf=-limit), state


class ExponentialDecay(eqx.Module):
    """Raises the logits of the ids that end a row, ever faster, once `start` tokens were generated."""

    start: int
    factor: Any
    eos: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        beyond = state.new - self.start
        boost = jnp.abs(logits) * (_number(self.factor) ** jnp.maximum(beyond, 0).astype(jnp.float32) - 1.0)
        boosted = _columns(self.eos, logits) & (beyond > 0) & jnp.isfinite(logits)
        return jnp.where(boosted, logits + boost, logits), state


class SuppressTokens(eqx.Module):
    """Forbids tokens: always, or only when `length` columns are written."""

    tokens: Any
    length: int | None = None

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        now = True if self.length is None else state.length == self.length
        return jnp.where(_columns(self.tokens, logits) & now, _OFF, logits), state


# --- shaping the distribution to sample from; each keeps at least `keep` tokens


class Temperature(eqx.Module):
    """Divides the logits: below 1 sharper, above 1 flatter."""

    temperature: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return logits / _number(self.temperature), state


class TopH(eqx.Module):
    """Keeps the most probable tokens up to a share of the entropy of the best hundred (Potraghloo et al. 2025)."""

    top_h: Any

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        best = jax.lax.top_k(logits, min(100, logits.shape[-1]))[0]
        log_p = jax.nn.log_softmax(best, axis=-1)
        terms = jnp.where(jnp.isfinite(log_p), -jnp.exp(log_p) * log_p, 0.0)
        kept = jnp.cumsum(terms, axis=-1) <= jnp.sum(terms, axis=-1, keepdims=True) * _number(self.top_h)
        kept = kept.at[:, 0].set(True)
        threshold = jnp.min(jnp.where(kept, best, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits < threshold, _OFF, logits), state


class TopK(eqx.Module):
    """Keeps the `k` most probable tokens, and those that tie with the last of them (Fan et al. 2018)."""

    k: int = eqx.field(static=True)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return jnp.where(logits < _best(logits, self.k), _OFF, logits), state


class TopP(eqx.Module):
    """Keeps the most probable tokens that together reach `top_p` (Holtzman et al. 2020)."""

    top_p: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        rising = jnp.sort(logits, axis=-1)
        dropped = jnp.cumsum(_softmax(rising), axis=-1) <= 1.0 - _number(self.top_p)
        dropped = dropped.at[:, -self.keep :].set(False)
        threshold = jnp.min(jnp.where(dropped, jnp.inf, rising), axis=-1, keepdims=True)
        return jnp.where(logits < threshold, _OFF, logits), state


class MinP(eqx.Module):
    """Keeps tokens at least `min_p` times as probable as the best one (Nguyen et al. 2024)."""

    min_p: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        p = _softmax(logits)
        dropped = (p < _number(self.min_p) * jnp.max(p, axis=-1, keepdims=True)) & (logits < _best(logits, self.keep))
        return jnp.where(dropped, _OFF, logits), state


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
        below = jnp.cumsum(jnp.take_along_axis(_softmax(logits), order, axis=-1), axis=-1) < _number(self.mass)
        last = jnp.minimum(jnp.sum(below, axis=-1, keepdims=True), logits.shape[-1] - 1)
        last = jnp.maximum(last, self.keep - 1)
        return jnp.where(strange > jnp.take_along_axis(rising, last, axis=-1), _OFF, logits), state


class EpsilonCutoff(eqx.Module):
    """Keeps tokens of at least this probability (Hewitt et al. 2022)."""

    epsilon: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        dropped = (_softmax(logits) < _number(self.epsilon)) & (logits < _best(logits, self.keep))
        return jnp.where(dropped, _OFF, logits), state


class EtaCutoff(eqx.Module):
    """As `EpsilonCutoff`, with a cutoff that falls with the entropy (Hewitt et al. 2022)."""

    epsilon: Any
    keep: int = eqx.field(static=True, default=1)

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        log_p = jax.nn.log_softmax(logits, axis=-1)
        p, epsilon = jnp.exp(log_p), _number(self.epsilon)
        entropy = -jnp.sum(jnp.where(jnp.isfinite(log_p), log_p * p, 0.0), axis=-1, keepdims=True)
        eta = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
        return jnp.where((p < eta) & (logits < _best(logits, self.keep)), _OFF, logits), state


class Renormalize(eqx.Module):
    """Log probabilities in the place of logits."""

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        return jax.nn.log_softmax(logits, axis=-1), state


def processors_of(
    config: GenerationConfig,
    *,
    prompt_length: int,
    max_length: int,
    encoder_ids: Any,
    extra: tuple[Any, ...] = (),
) -> tuple[Any, ...]:
    """The processors that a complete config asks for, in transformers' order; inert options add none.

    `encoder_ids`: the model's input with -1 in its padding. `extra`: the caller's own, which come after the
    constraints and before what shapes the distribution.
    """
    c, eos = config, config.eos
    found: list[Any] = []

    def on(value: Any, *inert: Any) -> bool:
        return value is not None and (isinstance(value, jax.Array) or value not in inert)

    if c.sequence_bias:
        found.append(SequenceBias(c.sequence_bias))
    if on(c.encoder_repetition_penalty, 1.0):
        found.append(EncoderRepetitionPenalty(c.encoder_repetition_penalty, encoder_ids))
    if on(c.repetition_penalty, 1.0):
        found.append(RepetitionPenalty(c.repetition_penalty))
    if on(c.frequency_penalty, 0.0) or on(c.presence_penalty, 0.0):
        found.append(FrequencyPenalty(c.frequency_penalty, c.presence_penalty))
    if c.no_repeat_ngram_size:
        found.append(NoRepeatNGram(c.no_repeat_ngram_size))
    if c.encoder_no_repeat_ngram_size:
        found.append(NoRepeatNGram(c.encoder_no_repeat_ngram_size, encoder_ids))
    if c.bad_words_ids:
        words = [w for w in c.bad_words_ids if w not in {(e,) for e in eos}]
        if words:
            found.append(SequenceBias([(w, -np.inf) for w in words]))
    least = prompt_length + c.min_new_tokens if c.min_new_tokens else c.min_length or 0
    if eos and least > prompt_length:
        found.append(MinLength(least, _id_array(eos)))
    if c.forced_bos_token_id is not None:
        found.append(ForcedTokens(1, _id_array([c.forced_bos_token_id])))
    if c.forced_eos_token_id is not None:
        found.append(ForcedTokens(max_length - 1, _id_array(_ids(c.forced_eos_token_id))))
    if c.remove_invalid_values:
        found.append(RemoveInvalid())
    if c.exponential_decay_length_penalty is not None and eos:
        begin, factor = c.exponential_decay_length_penalty
        found.append(ExponentialDecay(begin, factor, _id_array(eos)))
    if c.suppress_tokens:
        found.append(SuppressTokens(_id_array(c.suppress_tokens)))
    if c.begin_suppress_tokens:
        first = prompt_length + (prompt_length <= 1 and c.forced_bos_token_id is not None)
        found.append(SuppressTokens(_id_array(c.begin_suppress_tokens), first))
    found.extend(extra)
    if c.do_sample:
        keep = 1 if (c.num_beams or 1) == 1 else len(eos) + 1 if eos else 2
        if on(c.temperature, 1.0):
            found.append(Temperature(c.temperature))
        if on(c.top_h):
            found.append(TopH(c.top_h))
        if c.top_k:
            found.append(TopK(max(c.top_k, keep)))
        if on(c.top_p, 1.0):
            found.append(TopP(c.top_p, keep))
        if on(c.min_p):
            found.append(MinP(c.min_p, keep))
        if on(c.typical_p, 1.0):
            found.append(Typical(c.typical_p, keep))
        if on(c.epsilon_cutoff, 0.0):
            found.append(EpsilonCutoff(c.epsilon_cutoff, keep))
        if on(c.eta_cutoff, 0.0):
            found.append(EtaCutoff(c.eta_cutoff, keep))
    if c.renormalize_logits:
        found.append(Renormalize())
    return tuple(found)
