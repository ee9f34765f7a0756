"""`fold`: runs the layers of a model, listed or stacked. Authors of models write no scan."""

from __future__ import annotations

from typing import Any

import jax

from .._tree import Stacked
from .cache import layer_cache
from .context import Context, along_batch

Trace = dict[str, Any]  # per output a tuple with one entry per layer


def fold(layers: Any, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, Trace]:
    """Passes `x` through all layers.

    A layer is called as `layer(x, context, cache)` and returns `(x, cache, extras)`: `extras` is a dict of optional
    outputs (`attentions`, `router_logits`), whose entries may be `None`. Returns `x`, the new caches (mirroring `layers`;
    `None` without a cache) and a dict with, for every output, a tuple over layers. `hidden_states` are the inputs of each
    layer, if the context wants them.
    """
    caches: list[Any] = []
    trace: Trace = {}
    index = 0
    for n, layer in enumerate(layers):
        part = None if cache is None else cache[n]
        width = layer.num_layers if isinstance(layer, Stacked) else 1
        x, part, extras = (_scan if isinstance(layer, Stacked) else _single)(layer, x, context, part, index)
        index += width
        caches.append(part)
        for name, values in extras.items():
            trace[name] = trace.get(name, ()) + values
    return x, None if cache is None else tuple(caches), trace


def _single(layer: Any, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, Trace]:
    def run(layer: Any, x: jax.Array, context: Context, cache: Any) -> Any:
        hidden = x if context.wants("hidden_states") else None
        if context.key is not None:
            context = context.replace(key=jax.random.fold_in(context.key, index))
        x, cache, extras = layer(along_batch(x, context.runtime), context, cache)
        x = along_batch(x, context.runtime)
        extras = {name: value for name, value in extras.items() if value is not None}
        return x, cache, extras if hidden is None else {"hidden_states": hidden, **extras}

    x, cache, extras = _remat(run, context.runtime.remat)(layer, x, context, cache)
    return x, cache, {name: (value,) for name, value in extras.items()}


def _remat(run: Any, policy: str | None) -> Any:
    if policy is None:
        return run
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return jax.checkpoint(run, policy=keep)


def _scan(stack: Stacked, x: jax.Array, context: Context, cache: Any, index: int) -> tuple[jax.Array, Any, Trace]:
    period = len(stack.blocks)

    def body(x: jax.Array, xs: Any) -> Any:
        blocks, caches, i = xs
        new: list[Any] = []
        extras: Trace = {}
        for j, block in enumerate(blocks):
            x, c, extra = _single(block, x, context, None if caches is None else caches[j], index + i * period + j)
            new.append(c)
            for name, value in extra.items():
                extras[name] = extras.get(name, ()) + value
        return x, (None if caches is None else tuple(new), extras)

    # One compiled body: without prevent_cse=False on the checkpoint inside, XLA still keeps one copy of it.
    x, (cache, extras) = jax.lax.scan(body, x, (stack.blocks, cache, jax.numpy.arange(stack.repeats)))
    trace = {name: tuple(value[i] for i in range(stack.repeats) for value in values) for name, values in extras.items()}
    return x, cache, trace


@layer_cache.register(tuple)
def _(layers: tuple[Any, ...], batch_size: int, max_length: int, dtype: Any) -> tuple[Any, ...] | None:
    caches = tuple(layer_cache(layer, batch_size, max_length, dtype) for layer in layers)
    return caches if jax.tree.leaves(caches) else None


@layer_cache.register(Stacked)
def _(stack: Stacked, batch_size: int, max_length: int, dtype: Any) -> Any:
    one = tuple(layer_cache(block, batch_size, max_length, dtype) for block in stack.blocks)
    repeat = lambda leaf: jax.numpy.broadcast_to(leaf[None], (stack.repeats, *leaf.shape))
    return jax.tree.map(repeat, one)
