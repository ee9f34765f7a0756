"""The numbers of a plan from its facts, compiled or sketched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .collectives import Collective
from .hardware import Hardware
from .roofline import HIDDEN, Roofline, roofline

HEADROOM = 0.92  # of a device's memory is for the program; the rest is the runtime's, and lost between buffers


def temporaries(facts: Mapping[str, Any]) -> int:
    """The larger of what a step and the pass over the prompt need beside their arguments."""
    return max(facts["temporaries"], facts.get("prompt", {}).get("temporaries", 0))


def total(facts: Mapping[str, Any]) -> int:
    """All bytes on one device. The gradients are among the temporaries, of which they are at least a part."""
    kept = sum(facts[name] for name in ("weights", "optimizer", "batch", "cache"))
    return kept + max(temporaries(facts), facts["gradients"])


def fits(size: int | float, hardware: Hardware) -> bool:
    return size <= HEADROOM * hardware.memory


def collectives(facts: Mapping[str, Any]) -> list[Collective]:
    return [Collective(kind, tuple(axes), size, n, tuple(group)) for kind, axes, size, n, group in facts["collectives"]]


def times(facts: Mapping[str, Any], hardware: Hardware, devices: int) -> Roofline:
    """The times of a step: a training step reads and writes everything once, a token reads weights and cache."""
    kept = facts["weights"] + facts["cache"]
    if "prompt" in facts:
        return _times(facts, hardware, devices, kept)
    return _times(facts, hardware, devices, 2 * (kept + facts["optimizer"] + facts["temporaries"]))


def prompt_times(facts: Mapping[str, Any], hardware: Hardware, devices: int) -> Roofline | None:
    """The times of the pass over the prompt, where there is one."""
    if (found := facts.get("prompt")) is None:
        return None
    return _times(found, hardware, devices, facts["weights"] + facts["cache"] + 2 * found["temporaries"])


def _times(facts: Mapping[str, Any], hardware: Hardware, devices: int, touched: int | float) -> Roofline:
    moved = collectives(facts)
    gathered = sum(c.bytes for c in moved if c.kind == "all-gather" and set(c.axes) <= set(HIDDEN))
    flops = facts["flops"]
    return roofline(hardware, flops=flops, touched=touched + gathered, collectives=moved, devices=devices)
