"""`fold`: runs the layers of a model, listed or stacked. Authors of models write no scan."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.tree import Stacked, layers_in
from ..core.verb import verb
from ..core.weight import shape_of
from .cache.cache import at_layer, layer_cache
from .context import Context, along_batch

Trace = dict[str, Any]  # per output a tuple with one entry per layer


def fold(
    layers: Any, x: jax.Array, context: Context, cache: Any = None, index: Any = 0
) -> tuple[jax.Array, Any, Trace]:
    """Passes `x` through all layers, the first of which has the number `index`.

    A layer is called as `layer(x, context, cache)` and returns `(x, cache, extras)`: `extras` is a dict of optional
    outputs (`attentions`, `router_logits`), whose entries may be `None`, or a tuple where a layer has several. Returns `x`, the
    new caches (mirroring `layers`; `None` without a cache) and a dict with, for every output, a tuple over layers.
    `hidden_states` are the inputs of each layer, if the context wants them.

    A layer finds its number in `context.layer`. What it gives to the later ones is the entry `handed_on` of its `extras`:
    trees of arrays by name, with the rows of the batch in front, which those find in `context.handed_on`. Its type must be
    registered with `hands_on`.
    """
    caches: list[Any] = []
    trace: Trace = {}
    for n, layer in enumerate(layers):
        part = None if cache is None else cache[n]
        x, part, extras = run(layer, x, context, part, index)
        index += layers_in(layer)
        caches.append(part)
        context = _handed_on(context, extras)
        for name, values in extras.items():
            trace[name] = trace.get(name, ()) + values
    return x, None if cache is None else tuple(caches), trace


@verb
def hands_on(layer: Any) -> bool:
    """Whether a layer gives later ones something by `handed_on`: a run of such layers is stacked with it in its loop."""
    return False


def _handed_on(context: Context, extras: Trace) -> Context:
    """The context of the layers after one that returned `extras`, whose `handed_on` it takes."""
    for new in extras.pop("handed_on", ()):
        context = context.replace(handed_on={**(context.handed_on or {}), **new})
    return context


@verb
def run(layer: Any, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, Trace]:
    """Passes `x` through one element of the layers, whose first layer has the number `index`: a single layer by default.

    Every entry of the outputs has the rows of the batch in front: `(batch, ...)`, or `(batch * seq, ...)`.
    """

    if isinstance(index, int) and context.added is not None and index >= context.added.shape[1]:
        context = context.replace(added=None)
    call = _compiled if isinstance(index, int) and _known(layer, context, cache) else _once
    x, cache, extras = call(layer, x, context.replace(layer=None), cache, index)
    return x, cache, {name: value if isinstance(value, tuple) else (value,) for name, value in extras.items()}


def _once(layer: Any, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, dict[str, Any]]:
    def once(layer: Any, x: jax.Array, context: Context, cache: Any) -> Any:
        hidden = x if context.wants("hidden_states") else None
        context = context.replace(layer=index)
        if context.key is not None:
            context = context.replace(key=jax.random.fold_in(context.key, index))
        if context.by_layer is not None:
            context = context.replace(by_layer=jnp.take(context.by_layer, index, axis=1))
        x, cache, extras = layer(along_batch(x, context.runtime), context, cache)
        x = along_batch(_with_added(x, context.added, index), context.runtime)
        extras = {name: value for name, value in extras.items() if value is not None}
        return x, cache, extras if hidden is None else {"hidden_states": hidden, **extras}

    return _remat(once, context.runtime.remat)(layer, x, context, cache)


# A listed model has one program, or one trace within the user's, for all of its layers that are alike: without it, an eager
# pass compiles every operation by itself. `index` is traced, so that it does not tell them apart.
_compiled = jax.jit(_once)


def _known(*trees: Any) -> bool:
    """Whether all layers are easyfn's own, of weights in any format: in one of the user's, Python may look at the numbers of
    an eager pass."""
    return all(
        all(isinstance(leaf, jax.Array) for leaf in leaves) and _easyfns(tree)
        for leaves, tree in map(jax.tree.flatten, trees)
    )


@functools.lru_cache(4096)
def _easyfns(tree: Any) -> bool:
    node = tree.node_data()
    if node is None or shape_of.knows(node[0]):  # a leaf, or a weight
        return True
    ours = node[0] in (tuple, list, dict, type(None)) or node[0].__module__.startswith("easyfn.")
    return ours and all(map(_easyfns, tree.children()))


def _with_added(x: jax.Array, added: jax.Array | None, index: Any) -> jax.Array:
    """What layer `index` says, and what the context adds to it, if anything."""
    if added is None:
        return x
    own = jnp.take(added, jnp.minimum(index, added.shape[1] - 1), axis=1).astype(x.dtype)
    return x + jnp.where(index < added.shape[1], own, 0)


def _remat(once: Any, policy: str | None) -> Any:
    if policy is None:
        return once
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return jax.checkpoint(once, policy=keep)


@run.register(Stacked)
def _(stack: Stacked, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, Trace]:
    x, cache, extras = scan(stack, x, context, cache, index)
    trace = {name: tuple(value[i] for i in range(stack.repeats) for value in values) for name, values in extras.items()}
    return x, cache, trace


def scan(stack: Stacked, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, Trace]:
    """A stacked run as one loop. Its outputs stay stacked: for every block of the period, all repeats along axis 0."""
    period = len(stack.blocks)
    whole = lambda node: at_layer.knows(type(node))
    parts, tree = jax.tree.flatten(cache, is_leaf=whole)
    held = [part if whole(part) else None for part in parts]

    def body(carry: Any, xs: Any) -> Any:
        (x, held, given), (blocks, sliced, i) = carry, xs
        here = context.replace(handed_on=given)
        parts = [s if h is None else at_layer(h, i) for h, s in zip(held, sliced, strict=True)]
        caches = None if cache is None else jax.tree.unflatten(tree, parts)
        new: list[Any] = []
        extras: Trace = {}
        for j, block in enumerate(blocks):
            x, c, extra = run(block, x, here, None if caches is None else caches[j], index + i * period + j)
            new.append(c)
            here = _handed_on(here, extra)
            for name, value in extra.items():
                extras[name] = extras.get(name, ()) + value
        parts = [] if cache is None else jax.tree.leaves(tuple(new), is_leaf=whole)
        held = [at_layer(part, None) if whole(part) else None for part in parts]
        return (x, held, here.handed_on), ([None if whole(part) else part for part in parts], extras)

    # One compiled body: without prevent_cse=False on the checkpoint inside, XLA still keeps one copy of it.
    sliced = [None if whole(part) else part for part in parts]
    every = (stack.blocks, sliced, jnp.arange(stack.repeats))
    given = context.handed_on
    if any(map(hands_on, stack.blocks)):  # room in the carry for what the first block of the run hands on
        first = jax.tree.map(lambda leaf: leaf[0], every)
        made = jax.eval_shape(lambda *args: body(*args)[0][2], (x, held, given), first) or {}
        given = {**jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), made), **(given or {})}
    (x, held, _), (sliced, extras) = jax.lax.scan(body, (x, held, given), every)
    if cache is not None:
        cache = jax.tree.unflatten(tree, [s if h is None else h for h, s in zip(held, sliced, strict=True)])
    return x, cache, extras


@layer_cache.register(tuple)
def _(layers: tuple[Any, ...], batch_size: int, max_length: int, dtype: Any) -> tuple[Any, ...] | None:
    caches = tuple(layer_cache(layer, batch_size, max_length, dtype) for layer in layers)
    return caches if jax.tree.leaves(caches) else None


@layer_cache.register(Stacked)
def _(stack: Stacked, batch_size: int, max_length: int, dtype: Any) -> Any:
    one = tuple(layer_cache(block, batch_size, max_length, dtype) for block in stack.blocks)
    repeat = lambda leaf: jnp.broadcast_to(leaf[None], (stack.repeats, *leaf.shape))
    return jax.tree.map(repeat, one)
