"""How long a step takes: the slowest of arithmetic, memory and links, as data sheets have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .collectives import Collective
from .hardware import Hardware

ATTAINED = 0.8  # of a data sheet's peak is what large bfloat16 products reach
HIDDEN = ("dp", "fsdp")  # their collectives move weights and gradients, beside the arithmetic of other layers


class Roofline(NamedTuple):
    """Seconds of one step on one device.

    - `compute`: the operations at 80 % of the peak. `memory`: every byte that is kept, read and written once.
    - `hidden`: collectives over `dp` and `fsdp`, which move weights and gradients while other layers compute.
    - `exposed`: all other collectives, which move activations that the next product waits for.
    """

    compute: float
    memory: float
    hidden: float
    exposed: float

    @property
    def step(self) -> float:
        """The slowest of what runs at the same time, and then what nothing can hide."""
        return max(self.compute, self.memory, self.hidden) + self.exposed

    @property
    def limit(self) -> str:
        parts = {"compute": self.compute, "memory": self.memory, "communication": max(self.hidden, self.exposed)}
        return max(parts, key=lambda name: parts[name])


def roofline(
    hardware: Hardware, *, flops: int | float, touched: int | float, collectives: Iterable[Collective], devices: int
) -> Roofline:
    """The times of a step of `flops` operations over all `devices`, and `touched` bytes on each."""
    hidden = exposed = 0.0
    for c in collectives:
        if set(c.axes) <= set(HIDDEN):
            hidden += seconds(c, hardware)
        else:
            exposed += seconds(c, hardware)
    return Roofline(flops / devices / (hardware.flops * ATTAINED), touched / hardware.bandwidth, hidden, exposed)


def seconds(c: Collective, hardware: Hardware) -> float:
    """The time of collectives in which every link is busy (a ring, or a tree as good), latency left out.

    Where a group reaches beyond a domain, its members inside one share their networks.
    """
    size = max(2, len(c.group))
    domains = len({device // hardware.domain for device in c.group})
    twice = 2 if c.kind == "all-reduce" else 1
    if c.kind == "collective-permute":
        return c.bytes / (hardware.network if domains > 1 else hardware.links)
    inside = twice * c.bytes * (size - 1) / size / hardware.links
    together = 1 if c.kind == "all-to-all" else size / domains
    across = twice * c.bytes * (domains - 1) / domains / together / hardware.network
    return max(inside, across)
