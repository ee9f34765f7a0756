"""A folder written beside takes the place of another: at once where the system can, and synced before."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..core import atomic
from .checkpoint import CONFIG, INDEX

# The files that a model consists of: those of the old one go with it.
MODEL = re.compile(
    r"model\.safetensors|model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
)


def document(data: Any) -> bytes:
    """The content of a file: bytes as they are, anything else as JSON."""
    if isinstance(data, bytes):
        return data
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_document(path: Path, data: Any) -> None:
    with atomic.written(path) as file:
        file.write(document(data))


def put_in_place(new: Path, old: Path, ours: re.Pattern[str] = MODEL) -> None:
    """Puts the folder `new` in the place of `old`, and keeps the files of `old` that are not `ours` and have no new one.

    Several that save to one place at once come one after the other, and the last one stays.
    """
    atomic.sync(new)
    with atomic.locked(old.parent):
        if old.exists():
            _replace(new, old, ours)
        else:
            os.rename(new, old)
    atomic.sync(old.parent)


def _replace(new: Path, old: Path, ours: re.Pattern[str]) -> None:
    made = {p.name for p in new.iterdir()}
    stale = [p for p in old.iterdir() if ours.fullmatch(p.name) or p.name in made]
    if not Path.cwd().is_relative_to(old) and not os.path.ismount(old):
        for path in old.iterdir():
            if path not in stale:
                _link(path, new / path.name)
        shutil.copymode(old, new)
        atomic.sync(new)
        if atomic.exchange(new, old):
            return
        for path in new.iterdir():
            if path.name not in made:
                _remove(path)
    written = sorted(new.iterdir(), key=lambda p: (p.name in (CONFIG, "adapter_config.json"), p.name == INDEX, p.name))
    for path in written:
        if path.is_dir() and (old / path.name).exists():
            _remove(old / path.name)
        os.replace(path, old / path.name)
    for path in stale:
        if path.name not in made:
            _remove(path)
    atomic.sync(old)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under a second name, or a copy where there are no hard links."""
    if os.path.isdir(source) and not os.path.islink(source):
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
