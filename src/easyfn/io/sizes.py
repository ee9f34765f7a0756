"""Counts of a config that nothing is built from before they are believed: a damaged one would fill the memory first."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .checkpoint import LoadError

_LAYERS = re.compile(r"(?:^|_)n?(?:layers?|blocks|depths?|hidden_groups|stages)$|layers$")
_EXPERTS = re.compile(r"experts?(?:_per_tok)?$|groups?$|heads?$|_kv$|num_labels$")
_MOST = {_LAYERS: 16_384, _EXPERTS: 1_048_576}  # whatever the files hold
_FREE = {_LAYERS: 256, _EXPERTS: 8_192}  # with however few tensors: layers may share weights, experts be joined


def believe(config: Any, where: Any, tensors: int | None = None) -> None:
    """Raises [`easyfn.LoadError`][] if a config asks for more layers, experts or heads than there can be.

    `config` is a dataclass or the content of a `config.json`, nested ones included; `tensors`, how many the files hold,
    each layer having one at least.
    """
    problems = []
    for key, kind, value in _counts(config):
        most = _MOST[kind] if tensors is None else max(_FREE[kind], tensors)
        if value > most:
            why = f"more than {most:,}" if tensors is None else f"and its files hold {tensors} tensors"
            problems.append(f"the config says {key}={value}, {why}: it is damaged, or belongs to another checkpoint")
    if problems:
        raise LoadError(where, problems)


def _counts(config: Any, path: str = "") -> Iterator[tuple[str, re.Pattern[str], int]]:
    if dataclasses.is_dataclass(config):
        config = {f.name: getattr(config, f.name, None) for f in dataclasses.fields(config)}
    for key, value in config.items():
        if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
            yield from _counts(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and isinstance(key, str):
            for kind in (_LAYERS, _EXPERTS):
                if kind.search(key):
                    yield f"{path}{key}", kind, value  # type: ignore[misc]
                    break
