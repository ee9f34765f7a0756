"""Where plans are made: here, if JAX has enough devices, or else in a process that has as many as it takes.

The number of CPU devices is fixed once JAX has started, so a plan for 512 of them is asked of a process of its own.
Questions and answers are JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ..core.halves import FLAG
from ..sharding import ShardingError
from .step import Job

ANSWERS = {"facts": "compile", "search": "search", "advise": "advice"}  # question -> the module that has its function


class Died(RuntimeError):
    """The process apart did not live to answer."""


def ask(question: str, job: Job, devices: int, **more: Any) -> Any:
    """The answer to a question about a job on so many devices: a function `question(job, devices, **more)` of ours.

    Programs of 16 bits are compiled apart in any case, see `compile.facts`; where that fails, as XLA:CPU has them.
    """
    narrow = question != "advise" and any(
        d is not None and jnp.dtype(d).itemsize < 4 for d in (job.dtype, job.compute_dtype)
    )
    told = isinstance(job.optimizer, str)
    if not (narrow and told) and _announced() >= devices and len(found := jax.devices("cpu")) >= devices:
        return _function(question)(job, found, **more)
    request = {"question": question, "job": job._asdict(), "more": more}
    if not narrow:
        return _apart(request, devices)
    try:
        return _apart({**request, "more": {**more, "widen": False}}, devices)
    except Died:
        return _apart(request, devices)


def _function(question: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f".{ANSWERS[question]}", __package__), question)


def _announced() -> int:
    """How many CPU devices JAX was told to make; asking JAX itself would start its backends."""
    told = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    number = getattr(jax.config, "jax_num_cpu_devices", -1)
    return number if number and number > 0 else int(told[-1]) if told else 0


def _apart(request: dict[str, Any], devices: int) -> Any:
    try:
        text = json.dumps(request)
    except TypeError as error:
        raise TypeError(
            f"plan: a step on {devices} devices is compiled in a process apart, which can be told only what JSON holds "
            f"({error}). Name the optimizer, use patterns instead of functions, or give this process the devices before "
            f'JAX starts: jax.config.update("jax_num_cpu_devices", {devices})'
        ) from None
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "JAX_PLATFORMS": "cpu",
        FLAG: "0",  # the programs stand for those of accelerators
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    code = f"from {__name__} import serve; serve()"
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise Died(f"plan: the process that plans for {devices} devices failed:\n{done.stderr[-2000:]}")
    answer = json.loads(lines[-1])
    if "error" not in answer:
        return answer["answer"]
    kinds: dict[str, type[Exception]] = {
        kind.__name__: kind for kind in (ShardingError, ValueError, TypeError, KeyError, FileNotFoundError)
    }
    raise kinds.get(answer["kind"], RuntimeError)(answer["error"])


def serve() -> None:
    """Reads a question from standard input and writes the answer, or the error, to standard output: one line of JSON."""
    request = json.loads(sys.stdin.read())
    try:
        answer = {"answer": _function(request["question"])(Job(**request["job"]), jax.devices(), **request["more"])}
    except Exception as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    print(json.dumps(answer))
