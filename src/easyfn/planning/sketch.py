"""A plan without a compiler: the facts of a job on a mesh from its traced program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from ..core.trainable import trainable
from .collectives import Collective
from .compile import Facts, local_bytes
from .splits import Spec, Value
from .step import Job, model_of, prompt, token, training
from .walk import Region


class Traced(NamedTuple):
    """The jaxprs of a job, on no mesh: the same for all of them."""

    step: Any
    token: Any = None


def trace(job: Job) -> Traced:
    """What a sketch walks. Of a quantized model its dense twin: how a format multiplies is a matter of its own."""
    job = job._replace(quantize=None)
    if job.generate is None:
        step = training(job, None)
        return Traced(jax.make_jaxpr(step.function)(*step.arguments))
    first = prompt(job, None)
    jaxpr, shapes = jax.make_jaxpr(first.function, return_shape=True)(*first.arguments)
    second = token(first.arguments[0], shapes[1], job.batch, None)
    return Traced(jaxpr, jax.make_jaxpr(second.function)(*second.arguments))


def sketch(job: Job, mesh: Mesh, traced: Traced) -> Facts:
    """What `facts` finds out by compiling, estimated: the bytes of arguments exactly, the rest as `walk` says."""
    if job.quantize is not None:
        model = model_of(job, mesh)
        trained = [
            x for x, learns in zip(jax.tree.leaves(model), jax.tree.leaves(trainable(model)), strict=True) if learns
        ]
        said = sketch(job._replace(quantize=None), mesh, traced)
        learns = job.generate is None
        return {**said, "weights": local_bytes(model), "gradients": local_bytes(trained) if learns else 0}
    if job.generate is None:
        step = training(job, mesh)
        state, batch = step.arguments
        weights = (state.params, state.frozen)
        region, outs = _walk(step.arguments, mesh, traced.step, weights, _gradients(state.params, mesh))
        return {
            **_said(region, outs, mesh),
            "weights": local_bytes(weights),
            "gradients": local_bytes(state.params, jnp.float32 if job.accumulate > 1 else None),
            "optimizer": local_bytes((state.opt_state, state.step)),
            "batch": local_bytes(batch),
            "cache": 0,
        }
    model, inputs = prompt(job, mesh).arguments
    first, outs = _walk((model, inputs), mesh, traced.step, model, {})
    cache = outs[1:]  # after the logits
    arguments = [*(_value(leaf, mesh, "weight") for leaf in jax.tree.leaves(model))]
    rest = traced.token.jaxpr.invars[len(arguments) :]
    tokens = Value(rest[0].aval, (("dp", "fsdp"),), "input")
    kept = [Value(v.aval, c.spec if c is not None else (), "input") for v, c in zip(rest[1:], cache, strict=True)]
    second = Region(dict(mesh.shape), {})
    last = second.run(traced.token.jaxpr, [*arguments, tokens, *kept])
    before = _said(first, outs, mesh)
    return {
        **_said(second, last, mesh),
        "weights": local_bytes(model),
        "gradients": 0,
        "optimizer": 0,
        "batch": local_bytes(inputs),
        "cache": int(sum(second.bytes(c) for c in kept)),
        "prompt": before,
    }


def _walk(arguments: Any, mesh: Mesh, traced: Any, weights: Any, homes: Mapping[Any, Spec]) -> tuple[Region, list[Any]]:
    known = {id(leaf) for leaf in jax.tree.leaves(weights)}
    leaves = jax.tree.leaves(arguments)
    region = Region(dict(mesh.shape), homes)
    return region, region.run(traced.jaxpr, [_value(x, mesh, "weight" if id(x) in known else "") for x in leaves])


def _gradients(params: Any, mesh: Mesh) -> dict[tuple[int, ...], Spec]:
    """How gradients are split, by their shapes: as their weights, also inside the loop over the layers of a stack."""
    homes: dict[tuple[int, ...], Spec] = {}
    for leaf in jax.tree.leaves(params):
        if leaf.ndim > 2:
            homes.setdefault(tuple(leaf.shape[1:]), spec_of(leaf, mesh)[1:])
        if leaf.ndim > 1:
            homes[tuple(leaf.shape)] = spec_of(leaf, mesh)
    return homes


def _said(region: Region, outs: list[Any], mesh: Mesh) -> Facts:
    moved = [
        Collective(kind, axes, int(size), int(count), group_of(mesh, axes))
        for (kind, axes), (size, count) in region.moved.items()
    ]
    return {
        "temporaries": int(region.peak(outs)),
        "flops": int(region.flops * mesh.size),
        "collectives": [list(c) for c in sorted(moved, key=lambda c: -c.bytes)],
    }


def _value(leaf: Any, mesh: Mesh, made: str) -> Value:
    return Value(leaf, spec_of(leaf, mesh), "input", made=made)


def spec_of(leaf: Any, mesh: Mesh) -> Spec:
    """The axes that split each dimension of an abstract array."""
    sharding = getattr(leaf, "sharding", None)
    said = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    named = [() if s is None else (s,) if isinstance(s, str) else tuple(s) for s in said]
    named += [()] * (len(leaf.shape) - len(named))
    return tuple(tuple(a for a in axes if mesh.shape[a] > 1) for axes in named)


def group_of(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, ...]:
    """The ids of the devices that differ from the first along these axes only."""
    ids = [0]
    stride = 1
    for name, size in reversed(list(mesh.shape.items())):
        if name in axes:
            ids = [i + n * stride for n in range(size) for i in ids]
        stride *= size
    return tuple(sorted(ids))
