"""Context parallelism: attention over a sequence that is split between devices, exact, and never gathered whole.

`ring`: each device keeps its queries, and the keys travel from device to device (Liu et al. 2023, arXiv 2310.01889). Scores
are made block by block with an online softmax, and again in the backward pass, so no device ever holds all keys.
`all_to_all`: each device trades its part of the sequence for all of it at a share of the heads, and back (DeepSpeed Ulysses,
Jacobs et al. 2023, arXiv 2309.14509).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ...core.halves import product
from ..attention.core import attend_here
from ..attention.scores import MASKED, scores_of
from ..context import Mask, Runtime, held_axes, scores_at_once


class Operands(NamedTuple):
    """What attention is differentiated by: arrays, or of each how it is split. `bias` `(1 or batch, heads, queries, all
    keys)` and `sinks` may be `None`."""

    q: Any
    k: Any
    v: Any
    bias: Any
    sinks: Any


class Facts(NamedTuple):
    """What it is not differentiated by. `place` is this device's number along the sequence, shape `(1,)`."""

    mask: Mask | None
    key: Any
    place: Any


@dataclasses.dataclass(frozen=True)
class How:
    """The static choices of one attention. `axes` are the mesh axes of the sequence, `size` their devices."""

    axes: tuple[str, ...]
    size: int
    scale: float
    softcap: float | None
    dropout_rate: float
    chunk: int
    causal: bool
    window: int | None


def sequence_split(q: jax.Array, k: jax.Array, runtime: Runtime) -> tuple[str, ...]:
    """The axes of the mesh over which the sequence of queries and keys `(batch, heads, seq, dim)` is split: none where
    there is no mesh, for a single token, and where a length does not divide."""
    if runtime.context_parallel is None or not isinstance(q, jax.core.Tracer) or q.shape[2] == 1:
        return ()
    mesh = jax.typeof(q).sharding.mesh
    axes = held_axes(mesh, runtime.sequence_axes)
    size = math.prod(mesh.shape[a] for a in axes)
    return () if q.shape[2] % size or k.shape[2] % size else axes


def attend_across(
    operands: Operands,
    mask: Mask | None,
    key: jax.Array | None,
    axes: tuple[str, ...],
    runtime: Runtime,
    *,
    scale: float,
    softcap: float | None,
    dropout_rate: float,
) -> jax.Array:
    """[`easyfn.nn.attend`][] of a sequence that is split over `axes` of the mesh, in the way that `runtime` says."""
    mesh = jax.typeof(operands.q).sharding.mesh
    size = math.prod(mesh.shape[a] for a in axes)
    causal, window = (False, None) if mask is None else (mask.causal, mask.window)
    how = How(axes, size, scale, softcap, dropout_rate, scores_at_once(runtime), causal, window)
    run = _trade if runtime.context_parallel == "all_to_all" else _pass_round
    return run(how, mesh, operands, Facts(mask, key, jnp.arange(size, dtype=jnp.int32)), runtime)


def _given(x: Any, spec: Any) -> Any:
    return None if x is None else spec


def _sharded(body: Any, mesh: Any, manual: Iterable[str], specs: tuple[Operands, Facts], how: How) -> Any:
    function = functools.partial(body, how)
    return jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=specs[0].q, axis_names=set(manual), check_vma=False
    )


def _pass_round(how: How, mesh: Any, operands: Operands, facts: Facts, runtime: Runtime) -> jax.Array:
    """Only the axes of the sequence are ours: rows and heads stay split over the others as XLA finds them."""
    split = PartitionSpec(None, None, how.axes)
    last = lambda x: PartitionSpec(*[None] * (x.ndim - 1), how.axes)
    everywhere = PartitionSpec()
    arrays = Operands(split, split, split, _given(operands.bias, split), _given(operands.sinks, everywhere))
    specs = Facts(jax.tree.map(last, facts.mask), _given(facts.key, everywhere), PartitionSpec(how.axes))
    return _sharded(_ring, mesh, how.axes, (arrays, specs), how)(operands, facts)


# --- all to all


def _trade(how: How, mesh: Any, operands: Operands, facts: Facts, runtime: Runtime) -> jax.Array:
    """All axes are ours: XLA would gather the rows before it trades."""
    heads, kv = operands.q.shape[1], operands.k.shape[1]
    if heads % math.lcm(kv, how.size):
        raise ValueError(
            f"Runtime(context_parallel='all_to_all') gives each of {how.size} devices a share of the heads, and {heads} heads "
            f"on {kv} key heads do not divide into such shares. Use context_parallel='ring'."
        )
    devices = lambda axes: math.prod(mesh.shape[a] for a in axes)
    rows, tensor = held_axes(mesh, runtime.batch_axes), held_axes(mesh, runtime.head_axes)
    if operands.q.shape[0] % devices(rows):
        rows = ()
    shares = devices(tensor)
    if kv % shares or (heads // shares) % math.lcm(kv // shares, how.size):
        tensor = ()

    def rowwise(x: jax.Array) -> PartitionSpec:  # of slots and segments
        return PartitionSpec(how.axes) if x.ndim == 1 else PartitionSpec(rows, how.axes)

    split = PartitionSpec(rows, tensor, how.axes)
    bias = None
    if operands.bias is not None:
        bias = PartitionSpec(rows if operands.bias.shape[0] > 1 else None, tensor, how.axes)
    arrays = Operands(split, split, split, bias, _given(operands.sinks, PartitionSpec(tensor)))
    specs = Facts(jax.tree.map(rowwise, facts.mask), _given(facts.key, PartitionSpec()), PartitionSpec(how.axes))
    return _sharded(_all_to_all, mesh, mesh.auto_axes, (arrays, specs), how)(operands, facts)


def _all_to_all(how: How, operands: Operands, facts: Facts) -> jax.Array:
    q, k, v, bias, sinks = operands
    kv = math.lcm(k.shape[1], how.size)  # fewer key heads than devices: several devices get the same one
    if kv > k.shape[1]:
        k, v = (jnp.repeat(x, kv // k.shape[1], axis=1) for x in (k, v))

    def to_heads(x: jax.Array) -> jax.Array:
        """From `(batch, heads, a part, ...)` to `(batch, a share of heads, all, ...)`."""
        group = x.shape[1] // kv
        parts = x.reshape(x.shape[0], kv // how.size, how.size, group, *x.shape[2:])
        parts = lax.all_to_all(parts, how.axes, 2, 4, tiled=True)
        return parts.reshape(x.shape[0], -1, *parts.shape[4:])

    q, k, v = to_heads(q), to_heads(k), to_heads(v)
    bias = None if bias is None else to_heads(bias)
    if sinks is not None:
        sinks = jnp.take(sinks.reshape(kv // how.size, how.size, -1), facts.place[0], axis=1).reshape(-1)
    mask = jax.tree.map(lambda x: lax.all_gather(x, how.axes, axis=x.ndim - 1, tiled=True), facts.mask)
    out, _ = attend_here(
        q,
        k,
        v,
        mask,
        scale=how.scale,
        bias=bias,
        softcap=how.softcap,
        sinks=sinks,
        dropout_rate=how.dropout_rate,
        key=None
        if facts.key is None
        else jax.random.fold_in(facts.key, lax.axis_index(jax.sharding.get_abstract_mesh().manual_axes)),
        runtime=Runtime(attention_chunk=how.chunk, context_parallel=None),
    )
    parts = out.reshape(out.shape[0], kv // how.size, 1, -1, *out.shape[2:])
    parts = lax.all_to_all(parts, how.axes, 4, 2, tiled=True)
    return parts.reshape(out.shape[0], -1, *parts.shape[4:])


# --- ring


class Slice(NamedTuple):
    """Some queries of this device; of all slices together, an axis in front."""

    q: jax.Array  # [batch, kv_heads, group, queries, dim]
    bias: jax.Array | None  # [1 or batch, kv_heads, group, queries, all keys]
    slots: jax.Array | None  # [queries] or [batch, queries]
    segments: jax.Array | None  # [batch, queries]
    number: jax.Array  # []


class Block(NamedTuple):
    """The keys that a device holds for now."""

    k: jax.Array  # [batch, kv_heads, keys, dim]
    v: jax.Array
    slots: jax.Array | None  # [keys] or [batch, keys]
    segments: jax.Array | None  # [batch, keys]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(how: How, operands: Operands, facts: Facts) -> jax.Array:
    """Custom derivatives, because autodiff would keep every block that came by: all keys on every device."""
    return _forward(how, operands, facts)[0]


def _forward(how: How, operands: Operands, facts: Facts) -> tuple[jax.Array, Any]:
    q, _, v, _, sinks = operands
    slices = _slices(how, operands, facts.mask)
    shape = (*slices.q.shape[:-1], 1)
    if sinks is None:
        top, total = jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32)
    else:  # a score that is there from the start
        top, total = jnp.broadcast_to(_per_head(sinks, shape), shape), jnp.ones(shape, jnp.float32)
    state = (top, total, jnp.zeros((*shape[:-1], v.shape[-1]), jnp.float32))

    def turn(carry: Any, n: jax.Array) -> tuple[Any, None]:
        block, state = carry
        coming = _pass_on(how, block)  # before the products, so that the two may run at once
        owner = (facts.place[0] - n) % how.size

        def one(xs: tuple[Slice, Any]) -> Any:
            part, (top, total, mixed) = xs

            def update() -> Any:
                scores = _scores(how, part, block, _columns(part.bias, owner, block))
                peak = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
                weight, kept = jnp.exp(scores - peak), jnp.exp(top - peak)
                value = _mix(_dropped(how, weight, facts, part, owner), block.v)
                return peak, total * kept + jnp.sum(weight, axis=-1, keepdims=True), mixed * kept + value

            return _where_seen(how, part, block, update, (top, total, mixed))

        return (coming, lax.map(one, (slices, state))), None

    (_, (top, total, mixed)), _ = lax.scan(turn, (_block(operands, facts.mask), state), jnp.arange(how.size))
    total = jnp.where(total == 0.0, 1.0, total)
    out = _whole(mixed / total, q.shape[2]).astype(q.dtype)
    return out, (operands, facts, top, total, out)


def _backward(how: How, saved: Any, g: jax.Array) -> tuple[Operands, None]:
    operands, facts, top, total, out = saved
    q, k, v, _, sinks = operands
    slices = _slices(how, operands, facts.mask)
    g, out = (_cut(_grouped(x, k.shape[1]), 3, slices.q.shape[4]).astype(jnp.float32) for x in (g, out))
    # What all scores of a query share in their gradients: the derivative of the softmax's denominator.
    shared = jnp.sum(g * out, axis=-1, keepdims=True)
    zeros = lambda x: None if x is None else jnp.zeros(x.shape, jnp.float32)

    def turn(carry: Any, n: jax.Array) -> tuple[Any, None]:
        block, d_block, d_q, d_bias = carry
        coming = _pass_on(how, block)
        owner = (facts.place[0] - n) % how.size

        def one(d_block: Any, xs: Any) -> tuple[Any, Any]:
            part, top, total, g, shared = xs
            here = _columns(part.bias, owner, block)

            def answer(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
                weight = jnp.exp(_scores(how, part._replace(q=q), block._replace(k=k), bias) - top) / total
                return _mix(_dropped(how, weight, facts, part, owner), v), jnp.sum(weight, axis=-1, keepdims=True)

            def update() -> Any:
                _, pull = jax.vjp(answer, part.q, block.k, block.v, here)
                d_q, d_k, d_v, d_bias = pull((g, -shared))
                return (d_block[0] + d_k, d_block[1] + d_v), (d_q, d_bias)

            return _where_seen(how, part, block, update, (d_block, jax.tree.map(jnp.zeros_like, (part.q, here))))

        d_block, (more_q, more_bias) = lax.scan(one, d_block, (slices, top, total, g, shared))
        if d_bias is not None:
            more_bias = more_bias.astype(jnp.float32)
            d_bias = lax.dynamic_update_slice_in_dim(d_bias, more_bias, owner * block.k.shape[2], axis=5)
        return (coming, _pass_on(how, d_block), d_q + more_q, d_bias), None

    start = (_block(operands, facts.mask), (zeros(k), zeros(v)), zeros(slices.q), zeros(slices.bias))
    (_, (d_k, d_v), d_q, d_bias), _ = lax.scan(turn, start, jnp.arange(how.size))
    d_q = _whole(d_q, q.shape[2])
    if d_bias is not None:
        d_bias = _whole(d_bias, q.shape[2])
    d_sinks = None
    if sinks is not None:
        weight = jnp.exp(_per_head(sinks, top.shape) - top) / total
        d_sinks = -jnp.sum(weight * shared, axis=(0, 1, 4, 5)).reshape(sinks.shape)
    found = zip((d_q, d_k, d_v, d_bias, d_sinks), operands, strict=True)
    return Operands(*(None if d is None else d.astype(x.dtype) for d, x in found)), None


_ring.defvjp(_forward, _backward)


def _pass_on(how: How, tree: Any) -> Any:
    """To the next device; what the last one had comes to the first."""
    there = [(i, (i + 1) % how.size) for i in range(how.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, how.axes, there), tree)


def _block(operands: Operands, mask: Mask | None) -> Block:
    _, k, v, _, _ = operands
    return Block(k, v, None, None) if mask is None else Block(k, v, mask.key_slots, mask.key_segments)


def _slices(how: How, operands: Operands, mask: Mask | None) -> Slice:
    """This device's queries in slices whose scores with one block are not more than a chunk."""
    q, k, _, bias, _ = operands
    length, kv = q.shape[2], k.shape[1]
    size = q.shape[0] * q.shape[1] * length * k.shape[2]
    rows = length if size <= how.chunk else min(length, max(16, length * how.chunk // size))
    part = _cut(_grouped(q, kv), 3, rows)
    return Slice(
        part,
        None if bias is None else _cut(_grouped(bias, kv), 3, rows),
        None if mask is None else _cut(mask.query_slots, mask.query_slots.ndim - 1, rows, mode="edge"),
        None if mask is None else _cut(mask.query_segments, 1, rows, mode="edge"),
        jnp.arange(part.shape[0]),
    )


def _grouped(x: jax.Array, kv: int) -> jax.Array:
    """`(batch, heads, seq, ...)` to `(batch, kv_heads, group, seq, ...)`."""
    return x.reshape(x.shape[0], kv, x.shape[1] // kv, *x.shape[2:])


def _cut(x: jax.Array, axis: int, rows: int, mode: Any = "constant") -> jax.Array:
    """`x` in pieces of `rows` along `axis`, the last one padded; the pieces in front."""
    pad = -x.shape[axis] % rows
    x = jnp.pad(x, [(0, pad if n == axis else 0) for n in range(x.ndim)], mode=mode) if pad else x
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, rows, *x.shape[axis + 1 :]), axis, 0)


def _whole(x: Any, length: int) -> jax.Array:
    """Slices `(slices, batch, kv_heads, group, rows, ...)` back to `(batch, heads, length, ...)`."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1, *x.shape[5:])[:, :, :length]


def _per_head(sinks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return sinks.astype(jnp.float32).reshape(1, 1, *shape[2:4], 1, 1)


def _columns(bias: jax.Array | None, owner: jax.Array, block: Block) -> jax.Array | None:
    """The bias of a slice's queries on the keys of the device `owner`."""
    keys = block.k.shape[2]
    return None if bias is None else lax.dynamic_slice_in_dim(bias, owner * keys, keys, axis=4)


def _scores(how: How, part: Slice, block: Block, bias: jax.Array | None) -> jax.Array:
    """`(batch, kv_heads, group, queries, keys)`, as one device makes them."""
    mask = None
    if part.slots is not None and part.segments is not None and block.slots is not None and block.segments is not None:
        mask = Mask(part.slots, part.segments, block.slots, block.segments, how.causal, how.window)
    return scores_of(part.q, block.k, mask, bias, how.scale, how.softcap)


def _mix(weight: jax.Array, v: jax.Array) -> jax.Array:
    batch, kv, group, rows, keys = weight.shape
    flat = weight.astype(v.dtype).reshape(batch, kv, group * rows, keys)
    mixed = product(flat, v, (((3,), (2,)), ((0, 1), (0, 1))))
    return mixed.reshape(batch, kv, group, rows, v.shape[-1])


def _dropped(how: How, weight: jax.Array, facts: Facts, part: Slice, owner: jax.Array) -> jax.Array:
    """Dropout of the weights: other places than on one device, the same in both passes."""
    if facts.key is None or not how.dropout_rate:
        return weight
    key = jax.random.fold_in(jax.random.fold_in(facts.key, facts.place[0] * how.size + owner), part.number)
    keep = jax.random.bernoulli(key, 1.0 - how.dropout_rate, weight.shape)
    return jnp.where(keep, weight / (1.0 - how.dropout_rate), 0.0)


def _where_seen(how: How, part: Slice, block: Block, update: Callable[[], Any], same: Any) -> Any:
    """`update()`, or `same` for a block that lies after all queries or outside of their window: it costs nothing."""
    if part.slots is None or block.slots is None or not (how.causal or how.window is not None):
        return update()
    first, last = jnp.min(part.slots), jnp.max(part.slots)
    reaches = jnp.max(block.slots) >= 0
    if how.causal:
        reaches = reaches & (jnp.min(block.slots) <= last)
    if how.window is not None:
        reaches = reaches & (first - jnp.max(block.slots) < how.window)
        if not how.causal:
            reaches = reaches & (jnp.min(block.slots) - last < how.window)
    return lax.cond(reaches, update, lambda: same)
