"""A folder written beside takes the place of another: at once where the system can, and synced before."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from .checkpoint import INDEX
from .hub import CONFIG

# The files that a model consists of: those of the old one go with it.
_OURS = re.compile(
    r"model\.safetensors|model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
)


def write_json(path: Path, data: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def put_in_place(new: Path, old: Path) -> None:
    """Puts the folder `new` in the place of `old`, and keeps the files of `old` that belong to no model."""
    if not old.exists():
        _sync(new)
        os.rename(new, old)
        _sync(old.parent)
        return
    made = {p.name for p in new.iterdir()}
    stale = [p for p in old.iterdir() if _OURS.fullmatch(p.name) or p.name in made]
    if not Path.cwd().is_relative_to(old) and not os.path.ismount(old):
        for path in old.iterdir():
            if path not in stale:
                _link(path, new / path.name)
        shutil.copymode(old, new)
        _sync(new)
        if _exchange(new, old):
            _sync(old.parent)
            return
        for path in new.iterdir():
            if path.name not in made:
                _remove(path)
    written = sorted(new.iterdir(), key=lambda p: (p.name == CONFIG, p.name == INDEX, p.name))
    for path in written:
        if path.is_dir() and (old / path.name).exists():
            _remove(old / path.name)
        os.replace(path, old / path.name)
    for path in stale:
        if path.name not in made:
            path.unlink()
    _sync(old)


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


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two folders in one step, where the system can (Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), ctypes.c_uint(both)) == 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
