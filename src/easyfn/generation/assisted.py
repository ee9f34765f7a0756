"""Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192): a draft proposes tokens, the model runs all of them
in one pass and keeps those that it would have said itself.

Greedily that is the model's own text, token for token. Sampling, a drafted token `x` is kept with probability
`min(1, p(x) / q(x))`, and the first that is not is replaced by one of `max(p - q, 0)`: what comes out follows `p`, the
model's distribution after all processors, whatever the draft's `q` is.

Rows advance at their own speeds. A round runs a row's newest token and its drafted ones; taking back those that were
refused is a smaller `Cache.length`: what is written beyond it is seen by no query before it is written over.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..forward.forward import init_cache
from ..nn.cache.cache import Cache, widen
from .chain import join
from .loop import is_one_of, start as start_plain
from .model import prefill, run_tokens
from .plan import Data, Plan, slots
from .prompt import align, copies, last
from .result import Generation
from .state import process
from .stop import follow


class Carry(NamedTuple):
    length: jax.Array  # [rows] columns written
    done: jax.Array  # [rows]
    ids: jax.Array  # [rows, max_length + drafted + 1], -1 wherever there is no token
    cache: Cache  # holds all columns but the newest
    draft: Cache | None  # holds all columns but the newest two
    memories: tuple[Any, ...]
    stop: jax.Array | None
    accepted: jax.Array  # [rows]
    proposed: jax.Array


class Proposal(NamedTuple):
    tokens: jax.Array  # [rows, drafted]
    number: jax.Array  # [rows] how many of them there are
    probabilities: jax.Array | None  # [rows, drafted, vocab], those they were drawn from; None: said for certain


@functools.partial(jax.jit, static_argnames="plan")
def run_assisted(model: Any, data: Data, *, plan: Plan) -> Generation:
    """The whole generation: prompt, first token, and rounds, in one program."""
    plain, keys, given, _ = start_plain(model, data, plan)
    rows = plain.token.shape[0]
    own = lambda cache: dataclasses.replace(cache, length=jnp.full((rows,), cache.length, jnp.int32))
    draft = None
    if data.draft is not None:
        draft = own(_read(data.draft, data, plan))
        draft = _back(draft, jnp.full((rows,), plan.prompt_length - 1, jnp.int32))
    carry = Carry(
        length=jnp.full((rows,), plan.prompt_length + 1, jnp.int32),
        done=plain.done | (plan.prompt_length + 1 >= plan.max_length),
        ids=jnp.pad(plain.ids, ((0, 0), (0, plan.drafted + 1)), constant_values=-1),
        cache=own(plain.cache),
        draft=draft,
        memories=plain.memories,
        stop=plain.stop,
        accepted=jnp.zeros((rows,), jnp.int32),
        proposed=jnp.zeros((rows,), jnp.int32),
    )
    carry = jax.lax.while_loop(lambda c: ~jnp.all(c.done), lambda c: turn(model, c, keys, data, plan), carry)
    new = carry.ids[:, plan.prompt_length : plan.max_length]
    return Generation(
        sequences=jnp.concatenate([given.astype(jnp.int32), jnp.where(new < 0, plan.pad, new)], axis=1),
        lengths=carry.length,
        accepted=carry.accepted,
        proposed=carry.proposed,
        prompt_length=plan.prompt_length,
    )


def _read(draft: Any, data: Data, plan: Plan) -> Cache:
    """The draft's cache of the prompt."""
    ids, mask = data.ids, data.mask
    if mask is None:
        mask = ids != plan.pad if plan.infer_mask else jnp.ones(ids.shape, bool)
    ids, mask = align(ids, mask)
    cache = widen(init_cache(draft, ids.shape[0], slots(plan, data)), plan.drafted + 1)
    _, cache = prefill(draft, ids, attention_mask=mask.astype(jnp.int32), cache=cache, fresh=True, **plan.inputs)
    return copies(cache, plan.rows)


def _back(cache: Cache, length: jax.Array) -> Cache:
    """`cache` with only its first `length` columns `(rows,)`: the columns dropped were all tokens."""
    return dataclasses.replace(cache, length=length, positions=cache.positions - (cache.length - length))


def turn(model: Any, carry: Carry, keys: Any, data: Data, plan: Plan) -> Carry:
    """One round."""
    count = plan.drafted
    turn_keys = None if keys is None else jax.vmap(jax.random.fold_in)(keys, carry.length)
    if data.draft is None:
        proposal, draft = look_up(carry, plan), None
    else:
        proposal, draft = propose(carry, turn_keys, data, plan)
    newest = jnp.take_along_axis(carry.ids, carry.length[:, None] - 1, axis=1)
    tokens = jnp.concatenate([newest, proposal.tokens], axis=1)
    out = run_tokens(model, jnp.maximum(tokens, 0), carry.cache, **plan.inputs)
    ids = _put(carry.ids, proposal.tokens, carry.length)
    scores, memories = score(carry, ids, out.logits, data, plan)
    matched, after = judge(proposal, scores, turn_keys)
    # What is new: the drafted tokens that are kept, then one of the model's own.
    place = jnp.arange(count + 1, dtype=jnp.int32)[None]
    drafted = jnp.pad(proposal.tokens, ((0, 0), (0, 1)))
    new = jnp.where(place < matched[:, None], drafted, jnp.where(place == matched[:, None], after[:, None], plan.pad))
    ends, states = ending(new, carry.stop, data, plan)
    ends = ends | (carry.length[:, None] + place + 1 >= plan.max_length)
    first = jnp.min(jnp.where(ends & (place <= matched[:, None]), place, count + 1), axis=1)  # none: count + 1
    kept = jnp.where(carry.done, 0, jnp.minimum(matched, first) + 1)
    ids = _put(ids, jnp.where(place < kept[:, None], new, -1), carry.length)
    length = carry.length + kept
    ran = jnp.maximum(kept, 1) - 1  # the position whose logits gave the newest token
    choose = lambda x: jax.vmap(lambda row, i: row[i])(jnp.moveaxis(x, 0, 1), ran)
    hold = lambda old, new: jnp.where(carry.done.reshape(-1, *(1,) * (new.ndim - 1)), old, new)
    tried = jnp.where(carry.done, 0, proposal.number)
    return Carry(
        length=length,
        done=carry.done | (first <= matched),
        ids=ids,
        cache=_back(out.cache, length - 1),
        draft=None if draft is None else _back(draft, length - 2),
        memories=jax.tree.map(lambda old, new: hold(old, choose(new)), carry.memories, memories),
        stop=None if states is None else hold(carry.stop, jnp.take_along_axis(states, ran[:, None], axis=1)[:, 0]),
        accepted=carry.accepted + jnp.where(carry.done, 0, jnp.minimum(jnp.minimum(matched, kept), tried)),
        proposed=carry.proposed + tried,
    )


# --- drafts


def propose(carry: Carry, keys: Any, data: Data, plan: Plan) -> tuple[Proposal, Cache]:
    """Tokens that the draft model says next, one after the other."""
    assert carry.draft is not None
    column = carry.length[:, None] + jnp.asarray([[-2, -1]])
    two = jnp.take_along_axis(carry.ids, column, axis=1)  # the last but one was perhaps not run yet
    out = run_tokens(data.draft, jnp.maximum(two, 0), carry.draft, **plan.inputs)

    def choose(
        ids: Any, memories: Any, logits: jax.Array, i: jax.Array
    ) -> tuple[Any, Any, jax.Array, jax.Array | None]:
        scores, memories = _rowwise(memories, ids, logits, carry.length + i, data, plan)
        if keys is None:
            token, q = jnp.argmax(scores, axis=-1).astype(jnp.int32), None
        else:
            draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row)
            token, q = jax.vmap(draw)(keys, scores).astype(jnp.int32), jax.nn.softmax(scores, axis=-1)
        return _put(ids, token[:, None], carry.length + i), memories, token, q

    def one(state: Any, i: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array | None]]:
        ids, cache, memories, logits = state
        ids, memories, token, q = choose(ids, memories, logits, i)
        out = run_tokens(data.draft, token[:, None], cache, **plan.inputs)
        return (ids, out.cache, memories, last(out).astype(jnp.float32)), (token, q)

    first = (carry.ids, out.cache, carry.memories, last(out).astype(jnp.float32))
    before = jnp.arange(plan.drafted - 1, dtype=jnp.int32)
    (ids, cache, memories, logits), (tokens, q) = jax.lax.scan(one, first, before)
    # The last one is not run: the next round begins with it where it is kept.
    _, _, token, q_last = choose(ids, memories, logits, jnp.int32(plan.drafted - 1))
    tokens = jnp.concatenate([tokens, token[None]])
    if q is not None and q_last is not None:
        q = jnp.moveaxis(jnp.concatenate([q, q_last[None]]), 0, 1)
    full = jnp.full(carry.length.shape, plan.drafted, jnp.int32)
    return Proposal(tokens.T, full, q), cache


def look_up(carry: Carry, plan: Plan) -> Proposal:
    """What followed the first place where the row's last tokens stood before: the longest run of at most `ngram`
    tokens that did, as transformers' `PromptLookupCandidateGenerator`."""
    ids, width = carry.ids, carry.ids.shape[1]
    place = jnp.arange(width, dtype=jnp.int32)[None]
    at = jnp.full(carry.length.shape, -1, jnp.int32)  # where what is drafted begins
    for n in range(plan.ngram, 0, -1):
        hit = (place + n < carry.length[:, None]) & (carry.length[:, None] > n)
        for j in range(n):
            last = jnp.take_along_axis(ids, jnp.maximum(carry.length[:, None] - n + j, 0), axis=1)
            shifted = jnp.roll(ids, -j, axis=1)
            hit = hit & (shifted == last) & (shifted >= 0)
        found = jnp.where(jnp.any(hit, axis=1), jnp.argmax(hit, axis=1).astype(jnp.int32) + n, -1)
        at = jnp.where(at < 0, found, at)
    places = jnp.maximum(at, 0)[:, None] + jnp.arange(plan.drafted, dtype=jnp.int32)[None]
    there = (at[:, None] >= 0) & (places < carry.length[:, None])
    tokens = jnp.take_along_axis(ids, jnp.minimum(places, width - 1), axis=1)
    count = jnp.sum(jnp.cumprod(there & (tokens >= 0), axis=1), axis=1, dtype=jnp.int32)
    return Proposal(jnp.where(there, tokens, 0), count, None)


# --- the model's judgement


def _rowwise(
    memories: Any, ids: jax.Array, logits: jax.Array, length: jax.Array, data: Data, plan: Plan
) -> tuple[jax.Array, Any]:
    """All processors, each row as a batch of its own: rows are of different lengths."""
    processors = join(*plan.processors, data.numbers)

    def one(memory: Any, row: jax.Array, score: jax.Array, at: jax.Array) -> tuple[jax.Array, Any]:
        lift = lambda x: x[None]
        score, memory = process(processors, jax.tree.map(lift, memory), row[None], score[None], at, plan.prompt_length)
        return score[0], jax.tree.map(lambda x: x[0], memory)

    return jax.vmap(one)(memories, ids, logits.astype(jnp.float32), length)


def score(carry: Carry, ids: jax.Array, logits: Any, data: Data, plan: Plan) -> tuple[jax.Array, Any]:
    """Scores `(rows, drafted + 1, vocab)` after the processors, and their memories after each, `(drafted + 1, ...)`."""
    if not join(*plan.processors, data.numbers):
        return logits.astype(jnp.float32), carry.memories  # of none
    place = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]

    def one(memories: Any, xs: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, Any]]:
        i, row = xs
        so_far = jnp.where(place < carry.length[:, None] + i, ids, -1)
        scores, memories = _rowwise(memories, so_far, row, carry.length + i, data, plan)
        return memories, (scores, memories)

    steps = jnp.arange(plan.drafted + 1, dtype=jnp.int32)
    _, (scores, memories) = jax.lax.scan(one, carry.memories, (steps, jnp.moveaxis(logits, 1, 0)))
    return jnp.moveaxis(scores, 0, 1), memories


def judge(proposal: Proposal, scores: jax.Array, keys: Any) -> tuple[jax.Array, jax.Array]:
    """How many drafted tokens are kept `(rows,)`, and the token that follows them `(rows,)`."""
    many = proposal.tokens.shape[1]
    there = jnp.arange(many, dtype=jnp.int32)[None] < proposal.number[:, None]
    leading = lambda good: jnp.sum(jnp.cumprod(good & there, axis=1), axis=1, dtype=jnp.int32)
    if keys is None:
        own = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        matched = leading(own[:, :-1] == proposal.tokens)
        return matched, jnp.take_along_axis(own, matched[:, None], axis=1)[:, 0]
    p, vocab = jax.nn.softmax(scores, axis=-1), scores.shape[-1]
    q = proposal.probabilities
    q = jax.nn.one_hot(proposal.tokens, vocab) if q is None else q
    of_token = lambda x: jnp.take_along_axis(x, proposal.tokens[..., None], axis=-1)[..., 0]
    u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, many), (many,)))(keys)
    matched = leading(u * of_token(q) < of_token(p[:, :-1]))
    # Where nothing was drafted q is zero, and the token is drawn from p.
    q = jnp.pad(jnp.where(there[..., None], q, 0.0), ((0, 0), (0, 1), (0, 0)))
    at = lambda x: jnp.take_along_axis(x, matched[:, None, None], axis=1)[:, 0]
    left = jnp.maximum(at(p) - at(q), 0.0)
    left = jnp.where(jnp.sum(left, axis=-1, keepdims=True) > 0, left, at(p))
    draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, many + 1), jnp.log(row))
    return matched, jax.vmap(draw)(keys, left).astype(jnp.int32)


def ending(new: jax.Array, state: Any, data: Data, plan: Plan) -> tuple[jax.Array, jax.Array | None]:
    """Where rows end within their new tokens `(rows, count)`, and the states of the stop strings after each."""
    ends = is_one_of(new, plan.eos)
    if state is None:
        return ends, None

    def one(state: jax.Array, token: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        state, hit = follow(data.stop, state, token)
        return state, (hit, state)

    _, (stopped, states) = jax.lax.scan(one, state, new.T)
    return ends | stopped.T, states.T


def _put(ids: jax.Array, tokens: jax.Array, at: jax.Array) -> jax.Array:
    """`ids` with `tokens` `(rows, count)` from column `at` `(rows,)`."""
    return jax.vmap(lambda row, new, i: jax.lax.dynamic_update_slice(row, new, (i,)))(ids, tokens, at)
