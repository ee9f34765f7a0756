"""The architectures, one file each, named as the `model_type` of their `config.json` (with `_` for `-` and `.`).

A file is found by its name and imported when its `model_type` or one of its classes is asked for: there is no list to
keep. Files that hold no family are imported by those that do.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import re
from typing import Any

from ..registry.family import Family as Family, files as _files


@functools.cache
def _classes() -> dict[str, str]:
    """The public classes of all files by name, read from their source: importing a hundred files would cost seconds."""
    source = importlib.resources.files(__name__)
    found: dict[str, str] = {}
    for file in sorted(_files()):
        text = source.joinpath(f"{file}.py").read_text(encoding="utf-8")
        found |= {name: file for name in re.findall(r"^class ([A-Z]\w*)", text, re.MULTILINE)}
    return found


def __getattr__(name: str) -> Any:
    if name in _files():
        return importlib.import_module(f".{name}", __name__)
    if name.startswith("_") or name not in _classes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_classes()[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_files(), *_classes()})
