"""Generating with a converted module, which has no cache of keys: the tokens so far are kept, and all of them run again."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...inputs.context import advance, make_context
from ...nn.cache.axes import cache_axes
from ...nn.cache.cache import Cache, layer_cache, rewindable, write
from ...nn.heads import max_positions
from ...nn.output import Output
from .interpret import Program, run
from .lengths import length_of


class History(eqx.Module):
    """The tokens of every slot of a cache."""

    tokens: jax.Array  # [batch, max_length] int32


@rewindable.register(History)
def _(cache: History) -> bool:
    return True


@cache_axes.register(History)
def _(cache: History) -> tuple[str, ...]:
    return ("batch slots",)


@layer_cache.register(Program)
def _(model: Program, batch_size: int, max_length: int, dtype: Any) -> History:
    _check(model, max_length)
    return History(jnp.zeros((batch_size, max_length), jnp.int32))


@max_positions.register(Program)
def _(model: Program) -> int | None:
    graph = model.config.graph
    if model.config.others:
        return length_of(model.config.others[-1])
    sizes = [graph.sizes.get(s, (0, None))[1] for i in graph.inputs for s in i.shape[1:2] if isinstance(s, str)]
    return min((s for s in sizes if s is not None), default=None)


def _check(model: Program, length: int) -> None:
    graph = model.config.graph
    taken = {i.name: i for i in graph.inputs}
    if graph.info.get("task") != "causal-lm" or "input_ids" not in taken:
        raise ValueError(f"generate: {graph.info.get('class')} is no causal language model, so it continues no tokens")
    if more := set(taken) - {"input_ids", "attention_mask", "position_ids"}:
        raise ValueError(
            f"generate: the module was converted with {', '.join(sorted(more))}, which generating does not know how to go on "
            "with. Convert it with input_ids and attention_mask alone"
        )
    free = 1 if model.config.others else 2
    fixed = [s for s in taken["input_ids"].shape[:free] if isinstance(s, int)]
    if fixed:
        raise ValueError(
            f"generate: the program takes input_ids of {taken['input_ids'].shape} only; a generation of {length} tokens needs "
            "batch and length free. Convert the module with example_inputs whose sizes it lets vary, or with lengths=[...]"
        )


def run_with_history(model: Program, given: dict[str, Any], cache: Cache) -> Output:
    """One pass over the new tokens `(batch, new)` after those in the cache: the logits of the new ones, and the cache.

    Rows are moved to the left end first, so that padding follows every token: a causal module does not see it, and its
    positions, however it counts them, are the tokens'. The whole length runs each time.
    """
    ids = jnp.asarray(given.pop("input_ids")).astype(jnp.int32)
    context, held = make_context((ids.shape[0], ids.shape[1]), cache=cache, **given)
    assert held is not None
    tokens = write(cache.layers.tokens, ids, cache.length, axis=1)
    seen = held.segment_ids > 0
    order = jnp.argsort(~seen, axis=1, stable=True)
    names = {i.name for i in model.config.graph.inputs}
    moved = {"input_ids": jnp.take_along_axis(tokens, order, axis=1)}
    if "attention_mask" in names:
        moved["attention_mask"] = jnp.take_along_axis(seen, order, axis=1).astype(jnp.int32)
    if "position_ids" in names:
        moved["position_ids"] = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    out = run(model, moved)
    logits: Any = out.logits if isinstance(out, Output) else out["logits"]
    place = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    slots = jnp.broadcast_to(context.slots.reshape(-1, ids.shape[1]), ids.shape)
    new = jnp.take_along_axis(place, slots, axis=1)
    return Output(
        logits=jnp.take_along_axis(logits, new[..., None], axis=1),
        cache=advance(held, context, History(tokens)),
    )
