"""A step compiled ahead of time for devices that are not there, and what its program says of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh

from ..inspect.flops import count
from ..sharding import make_mesh
from .collectives import read_collectives
from .step import Job, Step, prompt, token, training

# What XLA:CPU does to 16-bit programs for want of 16-bit instructions: whole weights and activations are kept a second
# time in float32, and moved so between devices. An accelerator does none of it. (Sums over devices cannot do without:
# their promotion stays, and is undone in the counting.)
_PROMOTIONS = "change-op-data-type,float-normalization-bf16,float-normalization-f16,simplify-fp-conversions"

Facts = dict[str, Any]  # JSON


def facts(job: Job, devices: Sequence[Any], mesh: Mapping[str, int], widen: bool = True) -> Facts:
    """The facts of a job on the first of these devices.

    `widen=False` forbids XLA:CPU to widen 16-bit arrays. There are programs for which it then has no code, and ends the
    process: for a process apart only.
    """
    return facts_on(job, mesh_of(mesh, devices), widen)


def mesh_of(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    return make_mesh(**{"fsdp": 1, **sizes}, devices=devices[: math.prod(sizes.values())])


def facts_on(job: Job, mesh: Mesh, widen: bool = True) -> Facts:
    """What the compiled programs of a job say: exact bytes by kind, temporaries, operations and collectives."""
    if job.generate is None:
        step = training(job, mesh)
        state = step.arguments[0]
        found, _ = _program(step, mesh, widen)
        found |= {
            "weights": local_bytes((state.params, state.frozen)),
            "trainable": local_bytes(state.params),
            "gradients": local_bytes(state.params, jnp.float32 if job.accumulate > 1 else None),
            "optimizer": local_bytes((state.opt_state, state.step)),
            "batch": local_bytes(step.arguments[1]),
            "cache": 0,
        }
        if job.remat is None:
            return found | {"model_flops": found["flops"]}
        plain = training(job._replace(remat=None), mesh)
        return found | {"model_flops": _flops(jax.make_jaxpr(plain.function)(*plain.arguments))}
    first = prompt(job, mesh)
    before, compiled = _program(first, mesh, widen)
    model = first.arguments[0]
    shapes = jax.eval_shape(first.function, *first.arguments)[1]
    placed = compiled.output_shardings[1]
    cache = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, placed)
    found, _ = _program(token(model, cache, job.batch, mesh), mesh, widen)
    return found | {
        "weights": local_bytes(model),
        "trainable": 0,
        "gradients": 0,
        "optimizer": 0,
        "batch": local_bytes(first.arguments[1]),
        "cache": local_bytes(cache),
        "model_flops": found["flops"],
        "prompt": before | {"model_flops": before["flops"]},
    }


def _program(step: Step, mesh: Mesh, widen: bool) -> tuple[Facts, Any]:
    traced = jax.jit(step.function, donate_argnums=step.donated).trace(*step.arguments)
    cpu = mesh.devices.flat[0].platform == "cpu"
    options: dict[str, Any] = {"xla_backend_optimization_level": 0} if cpu else {}
    if cpu and not widen:
        options["xla_disable_hlo_passes"] = _PROMOTIONS
    compiled = traced.lower().compile(compiler_options=options)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found: Facts = {
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "flops": _flops(traced.jaxpr),
        "xla_flops": (cost or {}).get("flops", 0.0),
        "collectives": [list(c) for c in read_collectives(compiled.as_text(), mesh.shape)],
    }
    return found, compiled


def _flops(traced: Any) -> int:
    """The operations of a program, without those whose results nothing reads: XLA does not run them."""
    return count(dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))[0])


def local_bytes(tree: Any, dtype: Any = None) -> int:
    """The bytes of a tree of (abstract) arrays on one device of their mesh; as if floats were in `dtype`, if it is given."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if getattr(leaf, "sharding", None) is None else leaf.sharding.shard_shape(leaf.shape)
        kind = leaf.dtype
        if jax.dtypes.issubdtype(kind, jax.dtypes.prng_key):
            kind, shape = jnp.dtype("uint32"), (*shape, 2)
        if dtype is not None and jnp.issubdtype(kind, jnp.floating):
            kind = jnp.promote_types(kind, dtype)
        total += math.prod(shape) * jnp.dtype(kind).itemsize
    return total
