"""A module whose parameters are on torch's `meta` device: shapes without numbers, so that a program of any size is made at once.

What is no weight, a table of rotations, is part of the program and needs its numbers: transformers' own are made as its
loader makes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_numbers(torch: Any, module: Any) -> Iterator[dict[str, Any] | None]:
    """The module with all its buffers on `meta`, beside its parameters, for the time of an export; gives their numbers by name.

    Gives `None`, and changes nothing, where no parameter is on `meta`.
    """
    if not any(p.is_meta for p in module.parameters()):
        yield None
        return
    if real := [name for name, p in module.named_parameters() if not p.is_meta]:
        raise ValueError(f"from_torch: some parameters are on meta and others are not: {', '.join(real[:5])}")
    places = [(part, name, b) for part in module.modules() for name, b in part._buffers.items() if b is not None]
    try:
        _fill(torch, module)
        numbers = {name: b for name, b in module.named_buffers() if not b.is_meta}
        saved = module.state_dict(keep_vars=True)
        if empty := [name for name, b in module.named_buffers() if b.is_meta and name not in saved]:
            raise ValueError(
                f"from_torch: {', '.join(empty[:5])} are on meta, and no file holds their numbers: make the module's "
                "parameters on meta and its buffers on the CPU"
            )
        for part, name, _ in places:
            part._buffers[name] = part._buffers[name].to("meta")
        yield numbers
    finally:
        for part, name, buffer in places:
            part._buffers[name] = buffer


def _fill(torch: Any, module: Any) -> None:
    """Buffers of transformers' modules that are in no file, made by the module's own rule, as `from_pretrained` does."""
    rule = getattr(module, "_init_weights", None)
    if rule is None or not hasattr(getattr(module, "config", None), "to_diff_dict"):
        return
    saved = module.state_dict(keep_vars=True)
    for path, part in module.named_modules():
        mine = {n: b for n, b in part._buffers.items() if b is not None and b.is_meta}
        mine = {n: b for n, b in mine.items() if (f"{path}.{n}" if path else n) not in saved}
        if not mine:
            continue
        for name, buffer in mine.items():
            part._buffers[name] = torch.full_like(buffer, _UNSET[buffer.dtype.is_floating_point], device="cpu")
        with torch.no_grad():
            rule(part)
        for name, buffer in mine.items():
            if bool((part._buffers[name] == _UNSET[buffer.dtype.is_floating_point]).all()) and buffer.numel():
                part._buffers[name] = buffer  # the rule does not know it


_UNSET = {True: -12345.0, False: 1}
