"""Weights that several layers share: one adapter here, and in PEFT's files one for each use, for PEFT wraps modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...registry.family import family_of
from ..safetensors import Info, read


def everywhere(
    model: Any, data: Mapping[str, Any], tensors: Mapping[str, np.ndarray], prefix: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An adapter's settings and tensors with those of all uses: PEFT computes the same if they are alike."""
    more = {
        prefix + other: array for name, array in tensors.items() for other in _others(model, name.removeprefix(prefix))
    }
    settings = dict(data)
    for key, value in data.items():
        if isinstance(value, list):
            settings[key] = value + [n for v in value if isinstance(v, str) for n in _others(model, v)]
        elif isinstance(value, Mapping):
            settings[key] = {**value, **{n: v for k, v in value.items() for n in _others(model, k)}}
    return settings, {**tensors, **more}


def _others(model: Any, name: str) -> list[str]:
    """The names of a module or tensor in the further layers that use it."""
    return [
        other + name.removeprefix(first)
        for first, others in family_of(model).uses(model).items()
        if name.startswith(first)
        for other in others
    ]


def used_alike(model: Any, left: dict[str, Info]) -> list[str]:
    """Takes the adapters of further uses out of `left`, where they are those of the first; what is wrong with others."""
    prefix, wrong = f"{family_of(model).prefix}.", []
    for first, others in family_of(model).uses(model).items():
        for other in others:
            for head in ("", prefix, None):  # adapters move between tasks
                one, two = (p.removeprefix(prefix) if head is None else head + p for p in (first, other))
                ends = {name.removeprefix(p) for p in (one, two) for name in left if name.startswith(p)}
                for end in sorted(ends):
                    mine, theirs = left.get(one + end), left.get(two + end)
                    if mine is None or theirs is None or not np.array_equal(read(mine), read(theirs)):
                        wrong.append(two + end)
                    left.pop(two + end, None)
    if not wrong:
        return []
    return [
        f"{wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}: the layers of {family_of(model).model_type} share "
        "these weights, and PEFT trains an adapter for each layer that uses them. Here a weight has one adapter, for all its "
        "uses, so that those of a file must be alike. Train them with ef.apply_lora (ef.save_adapter writes it for every use), "
        f"or leave the shared modules out in PEFT: LoraConfig(exclude_modules=r'.*{first.rstrip('.').rpartition('.')[2]}.*')"
    ]
