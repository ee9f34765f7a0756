"""What to change in a plan that does not fit: each way out with its own estimate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..inspect.show import size_of
from ..tasks.cross_entropy import LossConfig
from .compile import mesh_of
from .estimate import fits, temporaries, times, total
from .hardware import Hardware
from .search import candidates
from .sketch import sketch, trace
from .step import Job


def advise(
    job: Job, devices: Sequence[Any], mesh: Mapping[str, int], hardware: Mapping[str, Any], compiled: int
) -> list[str]:
    """Ways to less memory, those that fit first, each sketched on its own; `devices` are twice those of the mesh.

    `compiled` are the temporaries of the plan's own program: sketches are scaled by what they miss of it.
    """
    wanted = Hardware(**hardware)
    count = math.prod(mesh.values())
    base = sketch(job, mesh_of(mesh, devices), trace(job))
    scale = compiled / max(1, temporaries(base))
    before = times(base, wanted, count).step
    found = []
    for what, other, sizes in _ways(job, mesh, devices, wanted):
        try:
            said = sketch(other, mesh_of(sizes, devices), trace(other))
        except ValueError:  # a mesh that does not divide, a format that does not fit: no way out
            continue
        size = total(said) + (scale - 1) * temporaries(said)
        work = times(said, wanted, math.prod(sizes.values())).step / before * job.batch / other.batch
        verdict = "fits" if fits(size, wanted) else "does not fit"
        line = f"{what}: about {size_of(int(size))}, {verdict}; {work:.2g} x the time per row"
        found.append((not fits(size, wanted), line))
    return [line for _, line in sorted(found, key=lambda pair: pair[0])]


def _ways(
    job: Job, mesh: Mapping[str, int], devices: Sequence[Any], hardware: Hardware
) -> Iterator[tuple[str, Job, Mapping[str, int]]]:
    count = math.prod(mesh.values())
    rows = job.batch // (mesh.get("dp", 1) * mesh.get("fsdp", 1))
    for best in candidates(job, devices, count, hardware)[:1]:
        if {k: v for k, v in best.mesh.items() if v > 1} != {k: v for k, v in mesh.items() if v > 1}:
            yield f"mesh={_said(best.mesh)}", job, best.mesh
    if job.generate is None:
        if job.remat != "full":
            yield 'remat="full"', job._replace(remat="full"), mesh
        parts = [n for n in (2, 4, 8, 16, 32) if rows % n == 0 and job.accumulate == 1]
        for n in (*parts[:1], *parts[-1:]) if len(parts) > 1 else parts:
            yield f"accumulate={n}", job._replace(accumulate=n), mesh
        if not job.loss.get("chunk_size"):
            size = job.batch * max(1, job.sequence_length // 16)
            chunked = dataclasses.asdict(LossConfig(**{**job.loss, "chunk_size": size}))
            yield f"loss=LossConfig(chunk_size={size})", job._replace(loss=chunked), mesh
        if job.lora is None:
            yield "lora=16", job._replace(lora={"rank": 16, "alpha": 32}), mesh
        if job.optimizer in ("adamw", "adam") and job.lora is None:
            yield 'optimizer="adafactor"', job._replace(optimizer="adafactor"), mesh
    if job.quantize is None and (job.generate is not None or job.lora is not None):
        yield 'quantize="nf4"', job._replace(quantize={"method": "nf4"}), mesh
    elif job.quantize is None:
        both = job._replace(quantize={"method": "nf4"}, lora={"rank": 16, "alpha": 32})
        yield 'lora=16, quantize="nf4"', both, mesh
    if rows > 1 and rows % 2 == 0:
        yield f"batch={job.batch // 2}", job._replace(batch=job.batch // 2), mesh
    double = {**mesh, "fsdp": 2 * mesh.get("fsdp", 1)}
    more = job if rows % 2 == 0 else job._replace(batch=2 * job.batch)
    yield f"{2 * count} devices, {_said(double)}, batch={more.batch}", more, double


def _said(mesh: Mapping[str, int]) -> str:
    return "{" + ", ".join(f'"{name}": {size}' for name, size in mesh.items() if size > 1) + "}"
