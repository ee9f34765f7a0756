"""Expert parallelism: experts that are split between devices, and tokens that travel to theirs and back. None is dropped.

Where only the batch is split, each device sorts and multiplies its own tokens; XLA on its own would gather all of them on
every device to sort them.

Where experts are split too, each device sorts its tokens by expert and trades them in rounds of buffers of a fixed size
(`jax.lax.all_to_all`, which every backend has). A buffer has room for `ROOM` times the even share of
each device. If routing is even one round is enough; rounds that nobody needs are skipped, and if all tokens want one
device all rounds are run. So the result is that of one device, memory is about `ROOM` times that of the tokens' own rows
whatever the router says, and only the worst routing costs as much traffic as gathering all tokens would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ...core.tree import replace
from ...core.weight import axes_of, slots
from ..context import Runtime, divisible

ROOM = 1.5


class Split(NamedTuple):
    """How experts and tokens lie on a mesh: experts over `axes`, rows and tokens of `x` `(batch, seq, embed)` over `rows` and
    `tokens`. Without `rows` the tokens are XLA's, and each device of `axes` sees the same."""

    mesh: Any
    axes: tuple[str, ...]
    rows: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def size(self) -> int:
        return math.prod(self.mesh.shape[a] for a in self.axes)

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(self.rows or None, self.tokens or None)


def expert_split(x: jax.Array, experts: int, runtime: Runtime) -> Split | None:
    """How `experts` and the tokens `x` are split on the mesh of their program; `None` where neither are, or do not divide."""
    if runtime.expert_parallel is None or not isinstance(x, jax.core.Tracer):
        return None
    mesh = jax.typeof(x).sharding.mesh
    axes = divisible(mesh, runtime.expert_axes, experts)
    rows: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    if x.ndim == 3 and x.shape[1] > 1:  # a single token of each row (decoding) is less to move than an expert's weights
        rows, tokens = (
            divisible(mesh, runtime.batch_axes, x.shape[0]),
            divisible(mesh, runtime.sequence_axes, x.shape[1]),
        )
    if set(axes) - set(rows):
        rows = tokens = ()
    return Split(mesh, axes, rows, tokens) if axes or rows or tokens else None


def by_token(function: Callable[..., Any], x: jax.Array, runtime: Runtime, *same: Any) -> Any:
    """`function(x, *same)`, which treats each token of `x` `(batch, seq, ...)` by itself: so each device treats its own. XLA
    on its own gathers what it sorts. `same` are arrays (or `None`) that every token shares."""
    split = expert_split(x, 1, runtime)
    if split is None:
        return function(x, *same)
    across = jax.shard_map(
        function,
        mesh=split.mesh,
        in_specs=(split.spec, *(PartitionSpec() for _ in same)),
        out_specs=split.spec,
        axis_names={*split.rows, *split.tokens},
        check_vma=False,
    )
    return across(x, *same)


def answer_across(layer: Any, x: jax.Array, chosen: jax.Array, weights: jax.Array, split: Split) -> jax.Array:
    """What [`easyfn.nn.Experts`][] answers, where `split` says how. `layer.rows(x, sizes)` is the answer of the experts to
    rows sorted by expert; of its weights every device has those of its own experts, in whatever format."""
    # Axes that are not ours, `tp` above all, stay XLA's: it splits the products inside as it finds the weights.
    manual = (*split.axes, *(a for a in (*split.rows, *split.tokens) if a not in split.axes))
    whole = bool(split.axes) and not split.rows  # every device sees the same tokens

    def run(layer: Any, x: jax.Array, chosen: jax.Array, weights: jax.Array, place: jax.Array) -> jax.Array:
        rows, wanted = x.reshape(-1, x.shape[-1]), chosen.reshape(-1)
        if not whole and split.axes:
            y = _trade(layer, rows, wanted, split, manual)
        else:
            wanted = wanted - place[0] * layer.num_experts
            mine = (wanted >= 0) & (wanted < layer.num_experts)
            y = _answers(layer, rows, jnp.where(mine, wanted, layer.num_experts))
        y = jnp.sum(y.reshape(*chosen.shape, -1).astype(jnp.float32) * weights[..., None], axis=-2)
        return (lax.psum(y, split.axes) if whole else y).astype(x.dtype)

    own = PartitionSpec(split.axes or None)
    across = jax.shard_map(
        run,
        mesh=split.mesh,
        in_specs=(_specs(layer, split.axes), split.spec, split.spec, split.spec, own),
        out_specs=split.spec,
        axis_names=set(manual),
        check_vma=False,
    )
    return across(layer, x, chosen, weights, jnp.arange(split.size, dtype=jnp.int32))


def _specs(layer: Any, axes: tuple[str, ...]) -> Any:
    """A tree like `layer`: every array of its weights that has an axis of experts is split along it."""

    def spec(leaf: Any, names: tuple[str | None, ...]) -> PartitionSpec:
        return PartitionSpec(*[axes if name == "experts" and leaf.ndim == len(names) else None for name in names])

    def of(weight: Any, names: tuple[str | None, ...]) -> Any:
        tree = axes_of(weight, names)
        if type(tree) is tuple:  # an array, or a format all of whose arrays have the weight's axes
            return jax.tree.map(lambda leaf: spec(leaf, tree), weight)
        return jax.tree.map(spec, weight, tree)

    found = {name: of(getattr(layer, name), slot.axes) for name, slot in slots(layer).items()}
    return replace(layer, found)


def _sorted(group: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The order that sorts by `group`, its inverse, and how many there are of each group below `count`."""
    order = jnp.argsort(group, stable=True)
    return order, jnp.argsort(order), jnp.bincount(group, length=count + 1)[:count]


def _answers(layer: Any, x: jax.Array, group: jax.Array) -> jax.Array:
    """The answers `(tokens * k, embed)` of this device's experts `group` `(tokens * k,)` to its tokens `x` `(tokens, embed)`:
    zeros where `group` is none of them, but one past the last."""
    k = group.shape[0] // x.shape[0]
    order, back, sizes = _sorted(group, layer.num_experts)
    y = jnp.take(layer.rows(jnp.take(x, order // k, axis=0), sizes), back, axis=0)
    return jnp.where((group < layer.num_experts)[:, None], y, jnp.zeros_like(y))


def _trade(layer: Any, x: jax.Array, wanted: jax.Array, split: Split, manual: tuple[str, ...]) -> jax.Array:
    """The answers `(tokens * k, embed)` to this device's tokens, of whatever experts they want."""
    own, devices = layer.num_experts, split.size
    count = wanted.shape[0]
    k = count // x.shape[0]
    order, back, sizes = _sorted(wanted, own * devices)
    load = jnp.sum(sizes.reshape(devices, own), axis=1)  # how many rows go to each device
    first = jnp.cumsum(load) - load
    room = min(count, math.ceil(ROOM * count / devices))
    rounds = -(-count // room)
    needed = lax.pmax((jnp.max(load) + room - 1) // room, manual)  # the same everywhere: all take part, or none
    owner = wanted // own
    position = back - jnp.take(first, owner)  # of each row among those for its device

    @jax.checkpoint
    def send(layer: Any, x: jax.Array, number: jax.Array) -> jax.Array:
        slot = number * room + jnp.arange(room)
        valid = slot[None] < load[:, None]  # [devices, room]
        row = jnp.take(order, jnp.where(valid, first[:, None] + slot[None], 0))
        there = jnp.where(valid[..., None], jnp.take(x, row // k, axis=0), jnp.zeros((), x.dtype))
        group = jnp.where(valid, jnp.take(wanted, row) % own, own)
        there, group = (lax.all_to_all(a, split.axes, 0, 0, tiled=True) for a in (there, group))
        y = _answers(layer, there.reshape(-1, x.shape[-1]), group.reshape(-1))
        y = lax.all_to_all(y.reshape(devices, room, -1), split.axes, 0, 0, tiled=True)
        here = position - number * room
        mine = jnp.take(y.reshape(devices * room, -1), owner * room + jnp.clip(here, 0, room - 1), axis=0)
        return jnp.where(((here >= 0) & (here < room))[:, None], mine, jnp.zeros_like(mine))

    def round_(y: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        none = lambda layer, x, number: jnp.zeros(y.shape, y.dtype)
        return y + lax.cond(number < needed, send, none, layer, x, number), None

    like = jax.eval_shape(send, layer, x, jnp.zeros((), jnp.int32))
    y, _ = lax.scan(round_, jnp.zeros(like.shape, like.dtype), jnp.arange(rounds, dtype=jnp.int32))
    return y
