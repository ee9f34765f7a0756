"""Files that are there whole or not at all: written in a folder beside, synced, and put in their place at once.

A writer that is killed leaves that folder, which the next one to the same place removes. Whether the writer still lives is
told by a lock on it (`flock`, which the kernel drops with the process) and by its number, both of the same machine; what
another machine left is removed when it is a week old. Where the file system has no such locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from .multihost import first, same_number

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_WEEK = 7 * 24 * 3600


@contextlib.contextmanager
def beside(target: Path, what: str, alone: bool = True) -> Iterator[Path]:
    """A new, hidden folder beside `target`, the same on all processes, which is removed at the end if it is still there."""
    host = zlib.crc32(platform.node().encode())
    numbers = [same_number(n, alone) for n in (host & 0x7FFFFFFF, os.getpid(), secrets.randbits(31))]
    # Of a mount point the parent is another file system, or not ours to write.
    home = target if target.is_dir() and os.path.ismount(target) else target.parent
    path = home / ".{}.{:08x}-{}-{:08x}.tmp".format(target.name, *numbers)
    held: list[int] = []

    def make() -> None:
        home.mkdir(parents=True, exist_ok=True)
        _clear(home, target.name, numbers[0])
        path.mkdir()
        held.extend(_lock(path))

    first(make, what, alone)
    try:
        yield path
    finally:
        if alone or jax.process_index() == 0:
            shutil.rmtree(path, ignore_errors=True)
        for descriptor in held:
            os.close(descriptor)


def _clear(home: Path, target: str, host: int) -> None:
    """Removes what writers of `target` that are gone have left."""
    name = re.compile(rf"\.{re.escape(target)}\.([0-9a-f]{{8}})-(\d+)-[0-9a-f]{{8}}\.tmp")
    for path in list(home.iterdir()):
        found = name.fullmatch(path.name)
        if found is None:
            continue
        with contextlib.suppress(OSError):  # another writer removes it, too
            here = int(found[1], 16) == host
            if _lives(int(found[2])) if here else time.time() - path.stat().st_mtime < _WEEK:
                continue
            for descriptor in _lock(path):
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _lock(folder: Path, shared: bool = False, wait: bool = False) -> list[int]:
    """The descriptor of a folder that is locked until it is closed; none if another holds it, or nobody can."""
    if fcntl is None:
        return []
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return []
    return [descriptor]


@contextlib.contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Waits until no other writer is in this block with the same folder; `shared`, none but those that share it."""
    held = _lock(folder, shared, wait=True)
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


@contextlib.contextmanager
def if_free(folder: Path) -> Iterator[bool]:
    """Whether no other writer holds the folder, which then none gets in this block."""
    held = _lock(folder)
    try:
        yield bool(held)
    finally:
        for descriptor in held:
            os.close(descriptor)


def exchange(a: Path, b: Path) -> bool:
    """Exchanges two folders in one step, where the system can (Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), ctypes.c_uint(both)) == 0


@contextlib.contextmanager
def written(path: str | os.PathLike[str], buffering: int = -1) -> Iterator[Any]:
    """A new file, open for bytes and brought to the disk at the end."""
    with naming(path), open(path, "wb", buffering=buffering) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what writes a file or a folder: an error names it, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
