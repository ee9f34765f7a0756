"""The tensor files of a model, written by one process or by many: each file has one writer.

The alternative, every process writing the bytes of its own shards into one file, moves less between processes, but it
trusts the file system to keep apart what two machines write into one page: NFS does not, and an object store has no
such thing as a part of a file. So every process walks over the same list of arrays; an array that lies on several
processes is brought together for a moment (a collective, so all take part), and the one that writes the file keeps it.
As many files as there are processes are written at a time, each by a thread beside the walk.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.multihost import agree, first
from .safetensors import order

Shapes = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Entry(NamedTuple):
    """One tensor of the file to be: `read()` brings its bytes, as late as possible. All processes call it; those that do
    not write it say `read(False)` and get nothing. Tensors of one `array` of the model are read one after the other."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[..., Any]
    array: Any = None


def nbytes(entry: Entry) -> int:
    return math.prod(entry.shape) * entry.dtype.itemsize


def index_of(shards: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """The index of a model in several files: which tensor is in which."""
    weight_map = {entry.name: name for name, entries in shards.items() for entry in entries}
    total = sum(nbytes(entry) for entries in shards.values() for entry in entries)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def write_all(
    shards: Mapping[str, Sequence[Entry]],
    write: Callable[[str, Shapes, Iterator[np.ndarray]], None],
    finish: Callable[[], None],
    alone: bool,
) -> None:
    """Every file, and then `finish()`, once, if no process failed: an error of one is raised on all of them."""
    error: BaseException | None = None
    try:
        write_files(shards, write, alone)
    except Exception as raised:
        error = raised
    agree(error, "save", alone)
    first(finish, "save", alone)


def write_files(
    shards: Mapping[str, Sequence[Entry]],
    write: Callable[[str, Shapes, Iterator[np.ndarray]], None],
    alone: bool = False,
) -> None:
    """Writes every file: `write(name, shapes, arrays)` is called by the process that it falls to, in a thread. `alone`: by
    this process, which holds the model whole.

    An error of one process (a full disk) is raised when the walk is over, so that no other waits for one that left it.
    """
    me, many = (0, 1) if alone else (jax.process_index(), jax.process_count())
    files = list(shards.items())
    error: BaseException | None = None
    for start in range(0, len(files), many):
        batch = files[start : start + many]
        writer = _Writer(*batch[me], write) if me < len(batch) else None
        try:
            for row in zip_longest(*(_by_array(entries) for _, entries in batch), fillvalue=()):
                for owner, entries in enumerate(row):
                    for entry in entries:
                        array = entry.read(owner == me)
                        if owner == me and writer is not None:
                            writer.arrays.put(array)
        finally:
            if writer is not None:
                writer.finish()
                error = error or writer.error
        if many == 1 and error is not None:
            break
    if error is not None:
        raise error


def _by_array(entries: Sequence[Entry]) -> list[list[Entry]]:
    return [list(group) for _, group in groupby(_ordered(entries), lambda entry: id(entry.array))]


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    by_name = {e.name: e for e in entries}
    return [by_name[n] for n in order({e.name: (e.shape, e.dtype) for e in entries})]


class _Writer:
    """A thread that writes one file; at most two tensors wait for it."""

    def __init__(self, name: str, entries: Sequence[Entry], write: Callable[..., None]) -> None:
        shapes = {e.name: (e.shape, e.dtype) for e in _ordered(entries)}
        self.arrays: queue.Queue[np.ndarray | None] = queue.Queue(1)
        self.ended = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(name, shapes, write), daemon=True)
        self.thread.start()

    def _run(self, name: str, shapes: Shapes, write: Callable[..., None]) -> None:
        try:
            write(name, shapes, self._brought())
        except BaseException as error:
            self.error = error
        for _ in self._brought():  # whoever brings more need not wait for a writer that failed
            pass

    def _brought(self) -> Iterator[np.ndarray]:
        while not self.ended:
            array = self.arrays.get()
            self.ended = array is None
            if array is not None:
                yield array

    def finish(self) -> None:
        self.arrays.put(None)
        self.thread.join()
