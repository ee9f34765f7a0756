"""A run of layers in stages: each device of the mesh's axis runs its own, and hands its activations to the next.

    step       0   1   2   3   4   5   6        GPipe: 3 stages, 5 microbatches, 1 round
    stage 0    0   1   2   3   4   .   .
    stage 1    .   0   1   2   3   4   .
    stage 2    .   .   0   1   2   3   4

Only the axis of stages is manual in the `shard_map`: what a stage computes is the program of a stacked run, of any
family and weight format, split over the other axes as XLA finds it. (A `vmap` over stages sends the same, but runs both
branches of every condition and each loop over experts until the last stage's is done.) The loop over steps has a
fixed length, so gradients are JAX's own: the backward pass is the same schedule from its end. With rounds, groups of as
many microbatches as there are stages go round together: what the last stage hands on, the first needs at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from ...core.tree import Pipelined, Stacked
from ..cache.cache import at_layer, layer_cache
from ..context import Context, Runtime, divisible
from ..fold import Trace, fold, hands_on, run, scan


def schedule(stages: int, microbatches: int, rounds: int = 1) -> np.ndarray:
    """When the first stage takes which microbatch in which round: steps `(rounds, microbatches)`. Stage `s` follows `s` later.

    ```python
    import easyfn as ef
    steps = ef.nn.schedule(stages=2, microbatches=4, rounds=2)
    assert steps.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    ```
    """
    micro, turn = np.arange(microbatches)[None], np.arange(rounds)[:, None]
    return micro // stages * stages * rounds + turn * stages + micro % stages


class StagedCache(eqx.Module):
    """The caches of the rounds of a pipeline, each that of a stacked run: its layers lie where their stage is."""

    rounds: tuple[Any, ...]
    axis: str = eqx.field(static=True)


@run.register(Pipelined)
def _(pipe: Pipelined, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, Trace]:
    return _pass(pipe, x, context, cache, index)


@jax.jit  # a shard_map over some of the axes is for compiled functions
def _pass(pipe: Pipelined, x: jax.Array, context: Context, cache: Any, index: Any) -> tuple[jax.Array, Any, Trace]:
    mesh = jax.typeof(jax.tree.leaves(pipe)[0]).sharding.mesh
    size = mesh.shape.get(pipe.axis, 1)
    if size == 1:
        x, parts, trace = fold(pipe.rounds, x, context, None if cache is None else cache.rounds, index)
        return x, None if cache is None else StagedCache(parts, pipe.axis), trace
    if size != pipe.stages:
        raise ValueError(
            f"the layers are in {pipe.stages} stages and the mesh has {pipe.axis}={size}: "
            f"ef.pipeline(model, {size}, microbatches=...), or another mesh"
        )
    return _staged(pipe, mesh, x, context, cache, index)


def _staged(pipe: Pipelined, mesh: AbstractMesh, x: jax.Array, context: Context, cache: Any, index: Any) -> Any:
    stages, rounds, rows = pipe.stages, len(pipe.rounds), x.shape[0]
    parts = pipe.microbatches if cache is None else math.gcd(pipe.microbatches, rows)
    if rows % parts:
        raise ValueError(
            f"a batch of {rows} rows does not divide into {parts} microbatches: give rows that do, or "
            f"ef.pipeline(model, {stages}, microbatches={math.gcd(parts, rows)})"
        )
    _check_cache(cache, rows)
    if any(hands_on(block) for part in pipe.rounds for block in part.blocks):
        raise ValueError(
            "a pipeline passes hidden states from stage to stage, and these layers give later ones more than that "
            "(ef.nn.hands_on): take ef.unpipeline(model), and split it over other axes"
        )
    period, depth = len(pipe.rounds[0].blocks), pipe.rounds[0].repeats // stages  # of what a stage does in a step
    starts = schedule(stages, parts, rounds)
    steps = int(starts.max()) + stages
    arrays, rest = jax.tree.flatten(context)
    places = _row_axes(context, rows)
    arrays = [leaf if axis is None else _cut(leaf, parts, axis) for leaf, axis in zip(arrays, places, strict=True)]

    def stage(own: Any, x: jax.Array, shared: Any, cache: Any, number: jax.Array) -> Any:
        x, shared, number = jax.tree.map(lambda leaf: leaf[0], (x, shared, number))
        weights = own[0].blocks if rounds == 1 else jax.tree.map(_together, *[part.blocks for part in own])
        held = None if cache is None else jax.tree.map(lambda *c: _cut(_together(*c), parts, 2), *cache.rounds)

        def step(carry: Any, time: jax.Array) -> Any:
            handed_on, held = carry
            since = time - number
            turn, micro = since // stages % rounds, since // (stages * rounds) * stages + since % stages
            busy = (since >= 0) & (micro < parts)
            micro = jnp.clip(micro, 0, parts - 1)
            enters = (number == 0) & (turn == 0)
            h = jnp.where(enters, lax.dynamic_index_in_dim(x, micro, keepdims=False), handed_on)
            given = zip(shared, places, strict=True)
            leaves = [leaf if axis is None else _part(leaf, micro, axis) for leaf, axis in given]
            here = jax.tree.unflatten(rest, leaves)
            if here.key is not None and parts > 1:
                here = here.replace(key=jax.random.fold_in(here.key, micro))
            before = None if held is None else jax.tree.map(lambda c: _piece(c, turn, micro), held)
            first = index + (turn * stages + number) * depth * period

            def work(weights: Any, h: jax.Array, here: Context) -> Any:
                if rounds > 1:
                    weights = jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, turn, keepdims=False), weights)
                blocks = jax.tree.map(lambda w: _drawn(w, micro), weights)
                return scan(Stacked(blocks, 0, depth), h, here, before, first)

            job: Any = work
            if rounds > 1:  # kept for the backward pass, a round's weights would be there once for every step
                job = jax.checkpoint(work, policy=_KEPT[here.runtime.remat])
                here = here.replace(runtime=dataclasses.replace(here.runtime, remat=None))
            h, after, extras = job(weights, h, here)
            if held is not None:
                after = jax.tree.map(functools.partial(jnp.where, busy), after, before)
                held = jax.tree.map(lambda c, new: _with_piece(c, new, turn, micro), held, after)
            onward = lax.ppermute(h, pipe.axis, [(i, (i + 1) % stages) for i in range(stages)])
            return (onward, held), (h, extras)

        (_, held), (made, extras) = lax.scan(step, (jnp.zeros_like(x[0]), held), jnp.arange(steps))
        y = made[starts[-1] + stages - 1]  # right on the last stage
        extras = jax.tree.map(lambda leaf: jnp.take(leaf, starts + number, axis=0), extras)
        if held is not None:
            kept, tree = jax.tree.flatten(jax.tree.map(lambda c: _whole(c, 2), held))
            cache = StagedCache(tuple(tree.unflatten(c) for c in zip(*kept, strict=True)), pipe.axis)
        return y[None], jax.tree.map(lambda leaf: leaf[None], extras), cache

    # All that goes in and comes out has the stages in front, so that sums over stages are XLA's to make.
    hold = functools.partial(_hold, mesh, context.runtime)
    x = hold(_cut(x, parts), None)
    x = hold(jnp.pad(x[None], [(0, stages - 1)] + [(0, 0)] * x.ndim), pipe.axis, None)
    shared = [jnp.broadcast_to(leaf[None], (stages, *leaf.shape)) for leaf in arrays]
    spec = PartitionSpec(pipe.axis)
    across = jax.shard_map(stage, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={pipe.axis}, check_vma=False)
    y, extras, cache = across(pipe.rounds, x, shared, cache, jnp.arange(stages))
    y = hold(y, pipe.axis, None)[-1]
    y = _whole(hold(y, None if parts % stages else pipe.axis))
    return y, cache, {name: _per_layer(values, rows // parts) for name, values in extras.items()}


def _check_cache(cache: Any, rows: int) -> None:
    whole = lambda node: at_layer.knows(type(node))
    for node in jax.tree.leaves(cache, is_leaf=whole):
        if whole(node) or node.ndim < 2 or node.shape[1] != rows:
            raise TypeError(
                f"a pipeline cannot cut a cache of {type(node).__name__} into microbatches: take ef.unpipeline(model), "
                "or a cache from ef.init_cache"
            )


_OF_NO_ROW = ("relative", "shared", "key")  # fields of a `Context` that all rows share, whatever their shapes


def _row_axes(context: Context, rows: int) -> list[int | None]:
    """The axis of the rows in each array of a context; `None` where every row has the same."""

    def axis(field: str, leaf: jax.Array) -> int | None:
        place = 1 if field == "position_ids" and leaf.ndim == 3 else 0
        return place if field not in _OF_NO_ROW and leaf.ndim > 1 and leaf.shape[place] == rows else None

    return [axis(path[0].name, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(context)]


def _part(leaf: jax.Array, micro: jax.Array, axis: int) -> jax.Array:
    """One part of what `_cut` made."""
    return lax.dynamic_index_in_dim(leaf, micro, axis + 1 if axis else 0, keepdims=False)


def _cut(leaf: jax.Array, parts: int, axis: int = 0) -> jax.Array:
    """Rows `(rows, ...)` to `(parts, rows / parts, ...)`; along another axis the parts come after the rows.

    Every parts-th row: where devices hold blocks of rows, each microbatch has some of every block.
    """
    shape = leaf.shape
    leaf = leaf.reshape(*shape[:axis], shape[axis] // parts, parts, *shape[axis + 1 :])
    return leaf if axis else jnp.swapaxes(leaf, 0, 1)


def _whole(leaf: jax.Array, axis: int = 0) -> jax.Array:
    """The inverse of `_cut`."""
    leaf = leaf if axis else jnp.swapaxes(leaf, 0, 1)
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])


def _together(*leaves: jax.Array) -> jax.Array:
    return leaves[0][None] if len(leaves) == 1 else jnp.stack(leaves)


def _piece(leaf: jax.Array, turn: jax.Array, micro: jax.Array) -> jax.Array:
    """Of a cache `(rounds, layers, rows, parts, ...)` one part of one round, `(layers, rows, ...)`."""
    return lax.dynamic_index_in_dim(lax.dynamic_index_in_dim(leaf, turn, 0, keepdims=False), micro, 2, keepdims=False)


def _with_piece(leaf: jax.Array, new: jax.Array, turn: jax.Array, micro: jax.Array) -> jax.Array:
    start: tuple[Any, ...] = (turn, 0, 0, micro, *[0] * (leaf.ndim - 4))
    return lax.dynamic_update_slice(leaf, new[None, :, :, None], start)


def _drawn(leaf: jax.Array, micro: jax.Array) -> jax.Array:
    """A weight's PRNG keys, one per layer, are another for each microbatch; other arrays stay."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.vmap(lambda key: jax.random.fold_in(key, micro))(leaf)


def _all_but_slices(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive not in (lax.dynamic_slice_p, lax.squeeze_p, lax.reshape_p)


# What is kept of a step, by `Runtime.remat`.
_KEPT: dict[str | None, Any] = {
    None: _all_but_slices,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}


def _hold(mesh: AbstractMesh, runtime: Runtime, x: jax.Array, *lead: str | None) -> jax.Array:
    """`x` `(*lead, rows, seq, ...)` with its rows and tokens split as activations between layers are."""
    spec: list[Any] = list(lead)
    for size, wanted in zip(x.shape[len(lead) :], (runtime.batch_axes, runtime.sequence_axes), strict=False):
        spec.append(divisible(mesh, tuple(a for a in wanted if a not in lead), size) or None)
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _per_layer(values: tuple[jax.Array, ...], rows: int) -> tuple[jax.Array, ...]:
    """Outputs per block of the period, `(stages, rounds, microbatches, layers, rows * ..., ...)`, in the order of layers."""

    def ordered(leaf: jax.Array) -> jax.Array:
        leaf = jnp.moveaxis(leaf, (1, 0, 3), (0, 1, 2))
        parts, length = leaf.shape[3:5]
        leaf = leaf.reshape(-1, parts, rows, length // rows, *leaf.shape[5:])
        leaf = jnp.swapaxes(leaf, 1, 2)
        return leaf.reshape(leaf.shape[0], parts * length, *leaf.shape[4:])

    each = [ordered(leaf) for leaf in values]
    return tuple(leaf[layer] for layer in range(each[0].shape[0]) for leaf in each)


@layer_cache.register(Pipelined)
def _(pipe: Pipelined, batch_size: int, max_length: int, dtype: Any) -> Any:
    each = tuple(layer_cache(part, batch_size, max_length, dtype) for part in pipe.rounds)
    return StagedCache(each, pipe.axis) if jax.tree.leaves(each) else None
