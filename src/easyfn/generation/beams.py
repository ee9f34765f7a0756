"""Beam search and beam sampling, step for step as transformers' `_beam_search`, in one compiled loop.

Every prompt has `beams` running sequences, which take the best continuations of all of them that do not end, and as
many finished ones, ordered by their score: the sum of log probabilities over the length to the power of the penalty.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..nn.parallel.exchange import exchange
from .chain import join
from .loop import is_one_of, keep, observe, records
from .plan import Data, Plan
from .prompt import begin, mask_name, spread
from .result import Generation
from .state import process
from .stop import follow

_OUT = -1.0e9  # transformers' score of what is not to be chosen


class Beams(NamedTuple):
    """Sequences `(prompts, beams, ...)`."""

    ids: jax.Array  # [..., new] the tokens after the prompt, -1 where there is none
    scores: jax.Array  # [...]
    indices: jax.Array  # [..., new] int32, the running beam that each token extended; -1 where there is no token


class Carry(NamedTuple):
    length: jax.Array  # [] columns written
    running: Beams
    ended: Beams
    is_ended: jax.Array  # [prompts, beams]
    open: jax.Array  # [prompts] whether the running beams may still beat the ended ones
    halted: jax.Array  # [] nothing can be continued
    cache: Any
    memories: tuple[Any, ...]
    stop: jax.Array | None  # [prompts, beams]
    prompt: jax.Array  # [rows, prompt_length], -1 where there is no token
    records: dict[str, Any]


@functools.partial(jax.jit, static_argnames="plan")
def run_beams(model: Any, data: Data, *, plan: Plan) -> tuple[Generation, dict[str, Any], jax.Array]:
    """The whole generation, the records of the prompt, and the columns written."""
    begun = begin(model, data, plan)
    rows, width, new = begun.ids.shape[0], plan.rows, plan.max_length - plan.prompt_length
    shape = (rows // width, width)
    none = jnp.full((*shape, new), -1, jnp.int32)
    first = jnp.broadcast_to(jnp.where(jnp.arange(width) == 0, 0.0, _OUT)[None], shape)  # all beams are alike yet
    carry = Carry(
        length=jnp.asarray(plan.prompt_length, jnp.int32),
        running=Beams(none, first, none),
        ended=Beams(none, jnp.full(shape, _OUT, jnp.float32), none),
        is_ended=jnp.zeros(shape, bool),
        open=jnp.ones(shape[:1], bool),
        halted=jnp.zeros((), bool),
        cache=begun.cache,
        memories=begun.memories,
        stop=None if begun.stop is None else begun.stop.reshape(shape),
        prompt=begun.ids[:, : plan.prompt_length],
        records=records(begun, plan),
    )
    keys = spread(data.keys, shape[0], 1) if plan.sample else None
    carry = advance(carry, begun.logits, keys, data, plan)
    carry = jax.lax.while_loop(
        lambda c: ~finished(c, plan),
        lambda c: step(model, c, keys, data, plan),
        carry,
    )
    return result(carry, begun.given, plan), begun.first, carry.length


def step(model: Any, carry: Carry, keys: Any, data: Data, plan: Plan) -> Carry:
    """One more token for every running beam."""
    index = carry.length - plan.prompt_length - 1
    token = jax.lax.dynamic_index_in_dim(carry.running.ids, index, axis=2, keepdims=False).reshape(-1)
    inputs = plan.inputs
    if "cache" in plan.outputs:
        inputs = {**inputs, mask_name(model): jnp.ones((token.shape[0], 1), jnp.int32)}
    logits, cache, found = observe(model, token, carry.cache, inputs, plan)
    kept = keep(carry.records, found, index)
    return advance(carry._replace(cache=cache, records=kept), logits, keys, data, plan)


def advance(carry: Carry, logits: jax.Array, keys: Any, data: Data, plan: Plan) -> Carry:
    """From logits `(rows, vocab)` to the next column of the running beams and what ended with it."""
    prompts, width = carry.is_ended.shape
    index = carry.length - plan.prompt_length
    raw = logits.astype(jnp.float32)
    ids = jnp.concatenate([carry.prompt, carry.running.ids.reshape(prompts * width, -1)], axis=1)
    scores, memories = process(
        join(*plan.processors, data.numbers),
        carry.memories,
        ids,
        jax.nn.log_softmax(raw, axis=-1),
        carry.length,
        plan.prompt_length,
    )
    found = {name: x for name, x in (("scores", scores), ("logits", raw)) if name in plan.outputs}

    # The best continuations of all beams: enough of them that `width` go on if every one of `eos` ends a beam.
    vocab = raw.shape[-1]
    total = (scores.reshape(prompts, width, vocab) + carry.running.scores[:, :, None]).reshape(prompts, -1)
    many = min(max(2, 1 + len(plan.eos)) * width, total.shape[1])
    chosen = total if keys is None else total + _gumbel(keys, index, total)  # top-k of it: drawn without replacement
    _, best = jax.lax.top_k(chosen, many)
    log_p = jnp.take_along_axis(total, best, axis=1)
    parent, token = best // vocab, (best % vocab).astype(jnp.int32)
    extended = Beams(
        ids=_put(_pick(carry.running.ids, parent), token, index),
        scores=log_p,
        indices=_put(
            _pick(carry.running.indices, parent), parent + jnp.arange(prompts, dtype=jnp.int32)[:, None] * width, index
        ),
    )
    hit, stop = is_one_of(token, plan.eos), carry.stop
    if stop is not None:
        stop, said = follow(data.stop, _pick(stop, parent), token)
        hit = hit | said
    hit = hit | (carry.length + 1 >= plan.max_length)

    going = log_p + hit * _OUT
    onward = jax.lax.top_k(going, width)[1]
    running = Beams(_pick(extended.ids, onward), _pick(going, onward), _pick(extended.indices, onward))
    ended, is_ended = _end(carry, extended, hit, data, plan)
    length = carry.length + 1

    # Whether the best running beam, at the length it is compared at, would beat the worst of the ended ones.
    compared = length - plan.prompt_length
    if plan.early_stopping == "never":
        compared = jnp.where(data.length_penalty > 0, plan.max_length - plan.prompt_length, compared)
    possible = running.scores[:, 0] / _power(compared, data.length_penalty)
    worst = jnp.where(is_ended, jnp.min(ended.scores, axis=1, keepdims=True), _OUT)
    source = (_pick(parent, onward) + jnp.arange(prompts)[:, None] * width).reshape(-1)
    return Carry(
        length=length,
        running=running,
        ended=ended,
        is_ended=is_ended,
        open=carry.open & jnp.any(possible[:, None] > worst, axis=1),
        halted=jnp.all(hit),
        cache=exchange(carry.cache, source, plan.prompt_length),
        memories=jax.tree.map(lambda x: jnp.take(x, source, axis=0), memories),
        stop=None if stop is None else _pick(stop, onward),
        prompt=carry.prompt,
        records=keep(carry.records, found, index),
    )


def _end(carry: Carry, extended: Beams, hit: jax.Array, data: Data, plan: Plan) -> tuple[Beams, jax.Array]:
    """The ended sequences, with those of the new ones that are among the best `width` and end."""
    width = carry.is_ended.shape[1]
    just = hit & (jnp.arange(hit.shape[1]) < width)[None]
    scores = extended.scores / _power(carry.length + 1 - plan.prompt_length, data.length_penalty)
    if plan.early_stopping is True:
        scores = scores + jnp.all(carry.is_ended, axis=1, keepdims=True) * _OUT
    scores = scores + ~carry.open[:, None] * _OUT + ~just * _OUT
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), carry.ended, extended._replace(scores=scores))
    best = jax.lax.top_k(both.scores, width)[1]
    is_ended = jnp.concatenate([carry.is_ended, just], axis=1)
    return Beams(*(_pick(x, best) for x in both)), _pick(is_ended, best)


def finished(carry: Carry, plan: Plan) -> jax.Array:
    enough = jnp.all(carry.is_ended) if plan.early_stopping is True else jnp.zeros((), bool)
    return ~jnp.any(carry.open) | enough | carry.halted


def result(carry: Carry, given: jax.Array, plan: Plan) -> Generation:
    best = Beams(*(x[:, : plan.returned].reshape(-1, *x.shape[2:]) for x in carry.ended))
    prompt = jnp.repeat(given.astype(jnp.int32), plan.returned, axis=0)
    return Generation(
        sequences=jnp.concatenate([prompt, jnp.where(best.ids < 0, plan.pad, best.ids)], axis=1),
        lengths=plan.prompt_length + jnp.sum(best.indices >= 0, axis=1, dtype=jnp.int32),
        sequences_scores=best.scores,
        beam_indices=best.indices,
        cache=carry.cache if "cache" in plan.outputs else None,
        prompt_length=plan.prompt_length,
        **carry.records,
    )


def _pick(x: jax.Array, which: jax.Array) -> jax.Array:
    """Of `x` `(prompts, n, ...)` the ones named by `which` `(prompts, m)`."""
    return jax.vmap(lambda a, i: jnp.take(a, i, axis=0))(x, which)


def _put(x: jax.Array, column: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, column[..., None].astype(x.dtype), index, axis=2)


def _power(length: jax.Array, penalty: jax.Array) -> jax.Array:
    return jnp.asarray(length, jnp.float32) ** penalty


def _gumbel(keys: jax.Array, index: jax.Array, like: jax.Array) -> jax.Array:
    one = lambda key: jax.random.gumbel(jax.random.fold_in(key, index), like.shape[1:], jnp.float32)
    return jax.vmap(one)(keys)
