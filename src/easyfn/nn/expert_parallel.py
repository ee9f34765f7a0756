"""Expert parallelism: experts that are split between devices, and tokens that travel to theirs and back. None is dropped.

Each device sorts its tokens by expert and trades them in rounds of buffers of a fixed size (`jax.lax.all_to_all`; JAX's
ragged exchange does not run on CPU). A buffer has room for `ROOM` times the even share of each device. If routing is
even one round is enough; rounds that nobody needs are skipped, and if all tokens want one device all rounds are run.
So the result is that of one device, memory is about `ROOM` times that of the tokens' own rows whatever the router says,
and only the worst routing costs as much traffic as gathering all tokens would.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from .._tree import replace
from .._weight import axes_of, slots
from .context import Runtime

ROOM = 1.5


class Split(NamedTuple):
    """How tokens and experts lie on the mesh: `axes` of the experts, `rows` and `tokens` of `x` `(batch, seq, embed)`,
    where tokens are traded; both empty where every device of `axes` sees the same tokens."""

    mesh: Any
    axes: tuple[str, ...]
    rows: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def size(self) -> int:
        return math.prod(self.mesh.shape[a] for a in self.axes)


def expert_split(x: jax.Array, experts: int, runtime: Runtime) -> Split | None:
    """How `experts` are split on the mesh that the program of `x` is for; `None` where they are not, or do not divide."""
    if runtime.expert_parallel is None or not isinstance(x, jax.core.Tracer):
        return None
    mesh = jax.typeof(x).sharding.mesh
    over = lambda names: tuple(a for a in names if a in mesh.auto_axes and mesh.shape[a] > 1)
    count = lambda axes: math.prod(mesh.shape[a] for a in axes)
    axes, rows, tokens = over(runtime.expert_axes), over(runtime.batch_axes), over(runtime.sequence_axes)
    if not axes or experts % count(axes):
        return None
    # A single token of each row (decoding) is less to move than what sorting apart would gather of the experts' weights.
    trades = x.ndim == 3 and x.shape[1] > 1 and not set(axes) - set(rows)
    if not trades or x.shape[0] % count(rows) or x.shape[1] % count(tokens):
        rows = tokens = ()
    return Split(mesh, axes, rows, tokens)


def answer_across(layer: Any, x: jax.Array, chosen: jax.Array, weights: jax.Array, split: Split) -> jax.Array:
    """What [`easyfn.nn.Experts`][] answers, where `split` says how. `layer.rows(x, sizes)` is the answer of the experts to
    rows sorted by expert; of its weights every device has those of its own experts, in whatever format."""
    own = PartitionSpec(split.axes)
    tokens = PartitionSpec(split.rows, split.tokens) if split.rows else PartitionSpec()
    # Axes that are not ours, `tp` above all, stay XLA's: it splits the products inside as it finds the weights.
    manual = {*split.axes, *split.rows, *split.tokens}

    def run(layer: Any, x: jax.Array, chosen: jax.Array, weights: jax.Array, place: jax.Array) -> jax.Array:
        each = jnp.reshape(x, (-1, x.shape[-1])), jnp.reshape(chosen, (-1, chosen.shape[-1]))
        y = _trade(layer, *each, split, tuple(manual)) if split.rows else _share(layer, *each, split, place[0])
        y = y.reshape(*chosen.shape, -1).astype(jnp.float32)
        y = jnp.sum(y * weights[..., None], axis=-2)
        return (y if split.rows else lax.psum(y, split.axes)).astype(x.dtype)

    across = jax.shard_map(
        run,
        mesh=split.mesh,
        in_specs=(_specs(layer, split.axes), tokens, tokens, tokens, own),
        out_specs=tokens,
        axis_names=manual,
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


def _answers(layer: Any, x: jax.Array, group: jax.Array, count: int) -> jax.Array:
    """`layer`'s answers to rows `x` of its expert `group`, and zeros for rows of group `count`."""
    order, back, sizes = _sorted(group, count)
    y = jnp.take(layer.rows(jnp.take(x, order, axis=0), sizes), back, axis=0)
    return jnp.where((group < count)[:, None], y, jnp.zeros_like(y))


def _share(layer: Any, x: jax.Array, chosen: jax.Array, split: Split, place: jax.Array) -> jax.Array:
    """Every device answers for its own experts, and zero for others: `(tokens * k, embed)`."""
    own = layer.num_experts
    group = chosen.reshape(-1) - place * own
    group = jnp.where((group >= 0) & (group < own), group, own)
    return _answers(layer, jnp.repeat(x, chosen.shape[1], axis=0), group, own)


def _trade(layer: Any, x: jax.Array, chosen: jax.Array, split: Split, manual: tuple[str, ...]) -> jax.Array:
    """The answers to this device's tokens: `(tokens * k, embed)`."""
    own, devices, k = layer.num_experts, split.size, chosen.shape[1]
    wanted = chosen.reshape(-1)
    count = wanted.shape[0]
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
        y = _answers(layer, there.reshape(-1, x.shape[-1]), group.reshape(-1), own)
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

