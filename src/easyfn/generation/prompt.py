"""The start of a generation: prompts brought into line and run, once for each however many rows follow them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..forward.forward import init_cache
from ..inputs.checks import aligned
from ..inputs.statement import inputs as inputs_of
from ..nn.cache.cache import Cache, reorder, widen
from ..nn.output import Output
from .chain import join
from .model import decoder_prompt, encodes, prefill, run_prompt, run_tokens
from .plan import Data, Plan, empty, slots
from .state import initial
from .stop import walk


class Begun(NamedTuple):
    """A generation after its prompt. Rows are those that run: each prompt's beams or answers, one after the other."""

    given: jax.Array  # [prompts, prompt_length], as the caller gave it
    ids: jax.Array  # [rows, max_length], -1 wherever there is no token
    logits: jax.Array  # [rows, vocab]
    cache: Any
    memories: tuple[Any, ...]
    stop: jax.Array | None  # [rows], the state of the automaton of stop strings
    first: dict[str, Any]  # what is recorded of the model's first pass


def begin(model: Any, data: Data, plan: Plan) -> Begun:
    """Runs the prompt."""
    ids, mask, inputs = data.ids, data.mask, data.inputs
    if mask is None and plan.text:
        mask = ids != plan.pad if plan.infer_mask else jnp.ones(ids.shape, bool)
    prompt, prompt_mask = decoder_prompt(model, ids, mask, plan.start, inputs)
    given = prompt
    if prompt is ids:
        if not plan.resumed:
            stated = inputs_of(model)
            beside = aligned(stated, {"input_ids": ids, **inputs})
            inputs = {n: align(x, mask)[0] if n in beside else x for n, x in inputs.items()}
            ids, mask = align(ids, mask)
        prompt, prompt_mask = ids, mask
    else:  # an encoder-decoder: ids are its source
        inputs = {**inputs, "decoder_input_ids": prompt}
    if prompt_mask is None:
        prompt_mask = jnp.ones(prompt.shape, bool)
    if plan.guided:
        ids, mask = _with_negative(ids, mask.astype(jnp.int32), data.negative)
        inputs = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), inputs)
    logits, cache, first = _run(model, ids, None if mask is None else mask.astype(jnp.int32), inputs, data, plan)
    cache = copies(cache, plan.rows, 2 if plan.guided else 1)
    own = 2 if plan.guided else 1
    logits, first = jax.tree.map(lambda x: _copies(x, plan.rows, own), (logits, first))

    prompt, prompt_mask = (jnp.repeat(x, plan.rows, axis=0) for x in (prompt, prompt_mask))
    history = jnp.full((prompt.shape[0], plan.max_length), -1, jnp.int32)
    history = history.at[:, : plan.prompt_length].set(jnp.where(prompt_mask != 0, prompt, -1).astype(jnp.int32))
    return Begun(
        given=given,
        ids=history,
        logits=logits,
        cache=cache,
        memories=initial(join(*plan.processors, data.numbers), history, logits.shape[-1]),
        stop=None if data.stop is None else walk(data.stop, history[:, : plan.prompt_length]),
        first=first,
    )


def _run(
    model: Any, ids: jax.Array, mask: Any, inputs: dict[str, Any], data: Data, plan: Plan
) -> tuple[jax.Array, Any, dict[str, Any]]:
    """The logits of the last column, the cache, and what is recorded."""
    cache, fresh = data.cache, data.cache is None or (plan.resumed == 0 and empty(data.cache))
    if cache is None and (plan.recorded or plan.drafted or plan.quantized):
        # Attentions are by slot, so rings become as long as the sequence; and drafted tokens can be taken back.
        cache = init_cache(model, ids.shape[0], slots(plan, data), dtype="int8" if plan.quantized else None)
        cache = widen(cache, slots(plan, data) if plan.recorded else plan.drafted)
    if plan.resumed:
        ids, mask = ids[:, plan.resumed :], mask[:, plan.resumed :]
    inputs = {**inputs, **plan.inputs, "max_length": slots(plan, data)}
    length = ids.shape[1]
    if plan.chunk is None or plan.chunk >= length:
        if not plan.recorded:
            logits, cache = prefill(model, ids, attention_mask=mask, cache=cache, **inputs, **_fresh(cache, fresh))
            return logits, cache, {}
        out = run_prompt(model, ids, attention_mask=mask, cache=cache, fresh=fresh, **inputs)
        return last(out), out.cache, {**recorded(out, plan), **_of_encoder(out, plan)}
    size = plan.chunk
    head = length % size or size  # then whole chunks, all one compiled body
    logits, cache = prefill(
        model, ids[:, :head], attention_mask=mask[:, :head], cache=cache, **inputs, **_fresh(cache, fresh)
    )
    if head == length:
        return logits, cache, {}
    cut = lambda x: jnp.swapaxes(x[:, head:].reshape(x.shape[0], -1, size), 0, 1)

    def one(carry: tuple[Cache, jax.Array], chunk: tuple[jax.Array, jax.Array]) -> tuple[tuple[Cache, jax.Array], None]:
        out = run_tokens(model, chunk[0], carry[0], attention_mask=chunk[1], logits_to_keep=1, **plan.inputs)
        return (out.cache, last(out).astype(carry[1].dtype)), None

    (cache, logits), _ = jax.lax.scan(one, (cache, logits), (cut(ids), cut(mask)))
    return logits, cache, {}


def _fresh(cache: Any, fresh: bool) -> dict[str, Any]:
    """A given cache that is empty is said to be; without one `prefill` knows."""
    return {} if cache is None else {"fresh": fresh}


def last(out: Output) -> jax.Array:
    """The logits of the last column."""
    assert out.logits is not None
    return out.logits[:, -1]


def recorded(out: Output, plan: Plan) -> dict[str, Any]:
    """What is kept of a pass."""
    found = {}
    if "hidden_states" in plan.outputs:
        found["hidden_states"] = out.hidden_states
    if "attentions" in plan.outputs:
        found["attentions"] = out.attentions
        if out.cross_attentions is not None:
            found["cross_attentions"] = out.cross_attentions
    return {name: tuple(x for x in value if x is not None) for name, value in found.items() if value is not None}


def _of_encoder(out: Output, plan: Plan) -> dict[str, Any]:
    found = {"encoder_hidden_states": out.encoder_hidden_states, "encoder_attentions": out.encoder_attentions}
    return {name: value for name, value in found.items() if value is not None}


def mask_name(model: Any) -> str:
    """What the mask of the tokens that are continued is called."""
    return "decoder_attention_mask" if encodes(model) else "attention_mask"


def _with_negative(ids: jax.Array, mask: jax.Array, negative: Any) -> tuple[jax.Array, jax.Array]:
    """Each prompt followed by the one to be guided away from, equally long by padding on the left."""
    other = (ids[:, -1:], jnp.ones_like(mask[:, -1:])) if negative is None else align(*negative)
    width = max(ids.shape[1], other[0].shape[1])

    def pair(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = [jnp.pad(x, ((0, 0), (width - x.shape[1], 0))) for x in (a, b.astype(a.dtype))]
        return jnp.stack(wide, axis=1).reshape(-1, width)

    return pair(ids, other[0]), pair(mask, other[1])


def copies(cache: Cache, count: int, own: int = 1) -> Cache:
    """Every group of `own` rows `count` times, one group after the other."""
    if count == 1:
        return cache
    return reorder(cache, _copies(jnp.arange(cache.segment_ids.shape[0]), count, own))


def _copies(x: jax.Array, count: int, own: int) -> jax.Array:
    if count == 1:
        return x
    groups = x.reshape(-1, 1, own, *x.shape[1:])
    return jnp.broadcast_to(groups, (groups.shape[0], count, *groups.shape[2:])).reshape(-1, *x.shape[1:])


def align(ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prompts with their padding moved to the left, so that every row's last column is a token; or what goes with their tokens,
    `(batch, seq, ...)`."""
    length = ids.shape[1]
    column = jnp.arange(length)[None]
    last = jnp.max(jnp.where(mask != 0, column, -1), axis=1, keepdims=True)
    source = (column + last + 1) % length
    take = lambda x: jnp.take_along_axis(x, source.reshape(*source.shape, *(1,) * (x.ndim - 2)), axis=1)
    return take(ids), take(mask)


def spread(keys: jax.Array, rows: int, copies: int) -> jax.Array:
    """One key per row: the caller's own, or the row's number folded into the only one; and the copy's number."""
    fold = jax.vmap(jax.random.fold_in)
    own = fold(jnp.broadcast_to(keys, (rows // copies,)), jnp.arange(rows // copies)) if keys.ndim == 0 else keys
    if copies == 1:
        return own
    return fold(jnp.repeat(own, copies), jnp.tile(jnp.arange(copies), rows // copies))
