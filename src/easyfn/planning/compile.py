"""A step compiled ahead of time for devices that are not there, and what its program says of itself."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .._flops import count
from ..sharding import ShardingError, make_mesh
from .collectives import read_collectives
from .step import Job, Step, prompt, token, training

# What XLA:CPU does to 16-bit programs for want of 16-bit instructions: whole weights and activations are kept a second
# time in float32, and moved so between devices. An accelerator does none of it. (Sums over devices cannot do without:
# their promotion stays, and is undone in the counting.)
_PROMOTIONS = "change-op-data-type,float-normalization-bf16,float-normalization-f16,simplify-fp-conversions"
_OPTIONS = {"xla_disable_hlo_passes": _PROMOTIONS, "xla_backend_optimization_level": 0}

Facts = dict[str, Any]  # JSON


def compile_job(job: Job, mesh: Mesh | Mapping[str, int]) -> Facts:
    """The facts of a job on a mesh: here, if JAX has that many devices (or the mesh is given), else in a process apart."""
    if isinstance(mesh, Mesh):
        return facts(job, mesh)
    wanted = math.prod(mesh.values())
    if _fake_devices() >= wanted and len(devices := jax.devices("cpu")) >= wanted:
        return facts(job, _mesh(mesh, devices[:wanted]))
    return apart({"compile": [job._asdict(), dict(mesh)]}, wanted)


def facts(job: Job, mesh: Mesh) -> Facts:
    """What the compiled programs of a job say: exact bytes by kind, temporaries, operations and collectives."""
    if job.generate is None:
        step = training(job, mesh)
        state = step.arguments[0]
        found, _ = _program(step, mesh)
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
        return found | {"model_flops": count(jax.make_jaxpr(plain.function)(*plain.arguments).jaxpr)}
    first = prompt(job, mesh)
    before, compiled = _program(first, mesh)
    model = first.arguments[0]
    shapes = jax.eval_shape(first.function, *first.arguments)[1]
    placed = compiled.output_shardings[1]
    cache = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, placed)
    found, _ = _program(token(model, cache, job.batch, mesh), mesh)
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


def _program(step: Step, mesh: Mesh) -> tuple[Facts, Any]:
    traced = jax.jit(step.function, donate_argnums=step.donated).trace(*step.arguments)
    cpu = mesh.devices.flat[0].platform == "cpu"
    compiled = traced.lower().compile(compiler_options=_OPTIONS if cpu else None)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    found: Facts = {
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "flops": count(traced.jaxpr.jaxpr),
        "xla_flops": (cost or {}).get("flops", 0.0),
        "collectives": [list(c) for c in read_collectives(compiled.as_text(), mesh.shape)],
    }
    return found, compiled


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


def _fake_devices() -> int:
    """How many CPU devices JAX was told to make; asking JAX itself would start its backends."""
    told = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    number = getattr(jax.config, "jax_num_cpu_devices", -1)
    return number if number and number > 0 else int(told[-1]) if told else 0


def _mesh(sizes: Mapping[str, int], devices: Any) -> Mesh:
    return make_mesh(**{"fsdp": 1, **sizes}, devices=devices)


def apart(request: Mapping[str, Any], devices: int) -> Any:
    """The answer of a process with so many fake CPU devices: their number is fixed once JAX has started."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    here = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    try:
        text = json.dumps(request)
    except TypeError as error:
        raise TypeError(
            f"plan: {devices} devices are compiled for in a process apart, which can be told only what JSON holds ({error}). "
            "Name the optimizer and use patterns instead of functions, or start Python with so many devices: "
            f'jax.config.update("jax_num_cpu_devices", {devices})'
        ) from None
    code = "from easyfn.planning.compile import serve; serve()"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"plan: the process that compiles for {devices} devices failed:\n{done.stderr[-2000:]}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        kinds: dict[str, type[Exception]] = {
            "ShardingError": ShardingError,
            "ValueError": ValueError,
            "TypeError": TypeError,
        }
        raise kinds.get(answer["type"], RuntimeError)(answer["error"])
    return answer["answer"]


def serve() -> None:
    """Reads a request from standard input and writes the answer, or the error, to standard output: one line of JSON."""
    request = json.loads(sys.stdin.read())
    try:
        if module := request.get("module"):  # a family that somebody else registered
            importlib.import_module(module)
        job, mesh = request["compile"]
        answer = {"answer": facts(Job(**job), _mesh(mesh, jax.devices()))}
    except Exception as error:
        answer = {"type": type(error).__name__, "error": str(error)}
    print(json.dumps(answer))
