"""The best mesh for a job: every shape sketched, the most promising compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.slots import find_slots
from ..sharding import ShardingError
from .compile import Facts, facts, mesh_of
from .estimate import fits, times, total
from .hardware import Hardware
from .sketch import sketch, trace
from .step import Job, model_of

CONFIRMED = 3  # meshes that are compiled


class Candidate(NamedTuple):
    """A mesh, what it needs and how long it takes by a sketch."""

    mesh: dict[str, int]
    total: int
    seconds: float


def candidates(job: Job, devices: Sequence[Any], count: int, hardware: Hardware) -> list[Candidate]:
    """The meshes of `count` devices on which the job can run, best first: those that fit, the fastest first, by sketches."""
    experts = any("experts" in f.slot.axes for f in find_slots(model_of(job, None)))
    traced = trace(job)
    found = []
    for sizes in shapes(count, ("dp", "fsdp", "ep", "tp") if experts else ("dp", "fsdp", "tp")):
        rows = sizes.get("dp", 1) * sizes.get("fsdp", 1)
        if job.batch % (rows * job.accumulate):
            continue
        try:
            said = sketch(job, mesh_of(sizes, devices), traced)
        except ShardingError:  # sizes of the model that the mesh does not divide
            continue
        found.append(Candidate(sizes, total(said), times(said, hardware, count).step))
    if not found:
        raise ShardingError(
            f"plan: no mesh of {count} devices divides {job.batch} rows and the model's axes; give a batch that is a multiple "
            'of more of them, or rules with indivisible="replicate"'
        )
    return sorted(found, key=lambda c: _rank(c, hardware))


def _rank(c: Candidate, hardware: Hardware) -> tuple[Any, ...]:
    """Those that fit by their time (to a per cent: of equals the one with fewer axes), then the others by their size."""
    if fits(c.total, hardware):
        return (0, float(f"{c.seconds:.2g}"), sum(n > 1 for n in c.mesh.values()), c.seconds)
    return (1, c.total)


def shapes(count: int, axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """Every way to write `count` as a product over the axes."""
    if len(axes) == 1:
        yield {axes[0]: count}
        return
    for size in (n for n in range(1, count + 1) if count % n == 0):
        for rest in shapes(count // size, axes[1:]):
            yield {axes[0]: size, **rest}


def search(
    job: Job, devices: Sequence[Any], count: int, hardware: Mapping[str, Any], widen: bool = True
) -> dict[str, Any]:
    """The facts of the best mesh by its compiled program, and the sketches of all: `{"mesh", "facts", "tried"}`."""
    wanted = Hardware(**hardware)
    tried = candidates(job, devices, count, wanted)
    best: tuple[Any, dict[str, int], Facts] | None = None
    for c in tried[:CONFIRMED]:
        compiled = facts(job, devices, c.mesh, widen)
        rank = _rank(Candidate(c.mesh, total(compiled), times(compiled, wanted, count).step), wanted)
        if best is None or rank < best[0]:
            best = (rank, c.mesh, compiled)
    assert best is not None
    return {"mesh": best[1], "facts": best[2], "tried": [list(c) for c in tried]}
