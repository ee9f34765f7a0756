"""One token after another, greedily or by sampling: prefill and loop are one compiled function."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..nn.cache.cache import reorder
from .chain import join
from .model import decode_step, run_tokens
from .plan import Data, Plan
from .prompt import Begun, begin, last, mask_name, recorded, spread
from .result import Generation
from .sampling import draw
from .state import process
from .stop import follow


class Carry(NamedTuple):
    """The loop's state. `ids` has -1 wherever there is no token."""

    length: jax.Array  # [] columns written
    token: jax.Array  # [rows] the newest column, to be run next
    done: jax.Array  # [rows]
    lengths: jax.Array  # [rows] columns up to the end of each row
    ids: jax.Array  # [rows, max_length]
    cache: Any
    memories: tuple[Any, ...]
    stop: jax.Array | None  # [rows] state of the automaton of stop strings
    records: dict[str, Any]  # of every step [steps, ...]; of the model's passes, all but the first


def is_one_of(token: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    hit = jnp.zeros(token.shape, bool)
    for i in ids:
        hit = hit | (token == i)
    return hit


def start(model: Any, data: Data, plan: Plan) -> tuple[Carry, Any, jax.Array, dict[str, Any]]:
    """Prefill and the first token: the carry, the row keys, the prompt as the caller gave it, the records of the prompt."""
    begun = begin(model, data, plan)
    rows = begun.ids.shape[0]
    carry = Carry(
        length=jnp.asarray(plan.prompt_length, jnp.int32),
        token=jnp.zeros((rows,), jnp.int32),
        done=jnp.zeros((rows,), bool),
        lengths=jnp.full((rows,), plan.prompt_length, jnp.int32),
        ids=begun.ids,
        cache=begun.cache,
        memories=begun.memories,
        stop=begun.stop,
        records=records(begun, plan),
    )
    row_keys = spread(data.keys, rows, plan.rows) if plan.sample else None
    given = jnp.repeat(begun.given, plan.rows, axis=0)
    return choose(carry, begun.logits, row_keys, data, plan), row_keys, given, begun.first


def records(begun: Begun, plan: Plan) -> dict[str, Any]:
    """Room for what is kept of every step."""
    steps = plan.max_length - plan.prompt_length
    rows, vocab = begun.ids.shape[0], begun.logits.shape[-1]
    room = {name: jnp.zeros((steps, rows, vocab), jnp.float32) for name in ("scores", "logits") if name in plan.outputs}
    slots = begun.cache.segment_ids.shape[1]

    def later(name: str, x: jax.Array) -> jax.Array:  # of one token, where the prompt has many
        shape = (*x.shape[:-2], 1, slots if name == "attentions" else x.shape[-1])
        return jnp.zeros((steps - 1, *shape), x.dtype)

    inner = {name: value for name, value in begun.first.items() if not name.startswith("encoder_")}
    return room | {name: tuple(later(name, x) for x in value) for name, value in inner.items()}


def step(model: Any, carry: Carry, row_keys: Any, data: Data, plan: Plan) -> Carry:
    """One more token."""
    token = jnp.repeat(carry.token, 2) if plan.guided else carry.token
    inputs = plan.inputs
    if "cache" in plan.outputs:  # whoever goes on with it finds padding after the end of a row
        alive = carry.length <= carry.lengths  # the token that ends a row is still its own
        alive = jnp.repeat(alive, 2) if plan.guided else alive
        inputs = {**inputs, mask_name(model): alive[:, None].astype(jnp.int32)}
    logits, cache, found = observe(model, token, carry.cache, inputs, plan)
    kept = keep(carry.records, found, carry.length - plan.prompt_length - 1)
    return choose(carry._replace(cache=cache, records=kept), logits, row_keys, data, plan)


def observe(model: Any, token: jax.Array, cache: Any, inputs: dict[str, Any], plan: Plan) -> tuple[Any, Any, dict]:
    """Runs one token of each row: logits, cache, and what is recorded of the pass."""
    if not plan.recorded:
        return *decode_step(model, token, cache, **inputs), {}
    out = run_tokens(model, token[:, None], cache, **inputs)
    return last(out), out.cache, recorded(out, plan)


def keep(records: dict[str, Any], found: dict[str, Any], index: jax.Array) -> dict[str, Any]:
    """`records` with `found` at `index`."""
    put = lambda buffer, value: jax.lax.dynamic_update_index_in_dim(buffer, value.astype(buffer.dtype), index, 0)
    return records | {name: jax.tree.map(put, records[name], value) for name, value in found.items()}


def choose(carry: Carry, logits: jax.Array, row_keys: Any, data: Data, plan: Plan) -> Carry:
    """From logits to the next column."""
    processors = join(*plan.processors, data.numbers)
    logits = raw = logits.astype(jnp.float32)
    if plan.guided:
        raw, logits = logits[0::2], guide(logits, data.guidance)
    index = carry.length - plan.prompt_length
    scores, memories = process(processors, carry.memories, carry.ids, logits, carry.length, plan.prompt_length)
    token = draw(row_keys, index, scores) if plan.sample else jnp.argmax(scores, axis=-1).astype(jnp.int32)
    token = jnp.where(carry.done, plan.pad, token)
    ended, stop = is_one_of(token, plan.eos), carry.stop
    if stop is not None:
        stop, hit = follow(data.stop, stop, token)
        ended = ended | hit
    found = {name: x for name, x in (("scores", scores), ("logits", raw)) if name in plan.outputs}
    return Carry(
        length=carry.length + 1,
        token=token,
        done=carry.done | ended,
        lengths=jnp.where(carry.done, carry.lengths, carry.length + 1),
        ids=jax.lax.dynamic_update_slice_in_dim(
            carry.ids, jnp.where(carry.done, -1, token)[:, None], carry.length, axis=1
        ),
        cache=carry.cache,
        memories=memories,
        stop=stop,
        records=keep(carry.records, found, index),
    )


def guide(logits: jax.Array, scale: jax.Array) -> jax.Array:
    """Classifier-free guidance (Sanchez et al. 2023): log probabilities moved away from those of every second row."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    wanted, other = log_p[0::2], log_p[1::2]
    return scale * (wanted - other) + other


def finished(carry: Carry, plan: Plan) -> jax.Array:
    return (carry.length >= plan.max_length) | jnp.all(carry.done)


@functools.partial(jax.jit, static_argnames="plan")
def run(model: Any, data: Data, *, plan: Plan) -> tuple[Generation, dict[str, Any], jax.Array]:
    """The whole generation, compiled once for each shape and plan; the records of the prompt; the columns written."""
    carry, row_keys, given, first = start(model, data, plan)
    carry = jax.lax.while_loop(
        lambda c: ~finished(c, plan),
        lambda c: step(model, c, row_keys, data, plan),
        carry,
    )
    return result(carry, given, plan), first, carry.length


def result(carry: Carry, given: jax.Array, plan: Plan) -> Generation:
    new = carry.ids[:, plan.prompt_length :]
    cache = carry.cache if "cache" in plan.outputs else None
    if cache is not None and plan.guided:
        cache = reorder(cache, jnp.arange(0, cache.segment_ids.shape[0], 2))
    return Generation(
        sequences=jnp.concatenate([given.astype(jnp.int32), jnp.where(new < 0, plan.pad, new)], axis=1),
        lengths=carry.lengths,
        cache=cache,
        prompt_length=plan.prompt_length,
        **carry.records,
    )
