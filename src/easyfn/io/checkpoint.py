"""A checkpoint: where each tensor lies, in one file or many; and the collected errors of a load."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ..core.schema import by_name, read_json, record, word
from ..names.part import Index
from .safetensors import BadFile, Info, mapped, read_header, read_part

T = TypeVar("T")

CONFIG = "config.json"
GENERATION = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


# What reading a damaged file may end in, where no check of ours came before.
DAMAGE = (TypeError, AttributeError, LookupError, ArithmeticError, UnicodeError, RecursionError, re.error, struct.error)


class LoadError(ValueError):
    """Everything that is wrong with a checkpoint, at once: `problems` is a list of sentences."""

    def __init__(self, where: Any, problems: Sequence[str]) -> None:
        self.where, self.problems = where, list(problems)
        shown = self.problems[:40]
        more = [f"... and {len(self.problems) - len(shown)} more"] if len(self.problems) > len(shown) else []
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        super().__init__(f"{where}: {count}\n" + "\n".join(f"  - {p}" for p in [*shown, *more]))

    def __reduce__(self) -> tuple[Any, ...]:  # pickle would give the text for `where`
        return type(self), (self.where, self.problems)


class Source(NamedTuple):
    """Tensors by name, wherever they are.

    - `read_into(name, out, start)` fills a C-contiguous array of the tensor's own dtype from byte `start` of it.
    - `value(name)`, if it is not `None`, is a JAX array that can be taken as it is.
    - `names(model)` are the rules of its names, where they are not Hugging Face's.
    - `read_part(name, out, index)` fills such an array with `tensor[index]` and reads no other byte. A source without it
      is read by whole rows.
    - `workers`: how many threads read at once.
    """

    where: str
    tensors: Mapping[str, Any]  # anything with `dtype` and `shape`
    read_into: Callable[[str, np.ndarray, int], None]
    value: Callable[[str], Any]
    problems: list[str]
    names: Callable[[Any], Any] | None = None
    read_part: Callable[[str, np.ndarray, Index], None] | None = None
    workers: int = 4


class Files(NamedTuple):
    """How the safetensors files of a checkpoint are reached: on the disk, or in an object store (`remote.py`)."""

    exists: Callable[[Path], bool]
    header: Callable[[Path], tuple[dict[str, Info], dict[str, str]]]
    read_part: Callable[[Info, np.ndarray, Index], None]
    workers: int = 4


LOCAL = Files(Path.exists, read_header, read_part)


def open_checkpoint(folder: Path, files: Files = LOCAL, *, where: str | None = None, mmap: bool = False) -> Source:
    """The tensors of a folder; unreadable shards are among its `problems`.

    `files` says where its safetensors are, if they are not in the folder, and `where` what errors call it. `mmap`: CPU
    arrays are the pages of the files themselves, as far as tensors are aligned in them.
    """
    problems: list[str] = []
    tensors: dict[str, Info] = {}
    single = folder / SINGLE
    if files.exists(single):
        found_files, expected = [single], {}
    elif (folder / INDEX).exists():
        expected = read_index(folder / INDEX)
        found_files = []
        for name in sorted(set(expected.values())):
            file = inside(folder, name)
            if files.exists(file):
                found_files.append(file)
            else:
                held = sum(v == name for v in expected.values())
                problems.append(f"{INDEX} names {name} ({held} tensors), and there is no such file")
    else:
        raise no_safetensors(folder)

    def header(file: Path) -> dict[str, Info] | str:
        try:
            return files.header(file)[0]
        except (BadFile, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(files.workers) as pool:
        headers = list(pool.map(header, found_files))
    for file, found in zip(found_files, headers, strict=True):
        if isinstance(found, str):
            problems.append(found)
            continue
        for name, info in found.items():
            if name in tensors:
                problems.append(f"tensor {name!r} is in {tensors[name].file.name} and in {file.name}")
            tensors[name] = info
        lost = [n for n, f in expected.items() if f == file.name and n not in found]
        problems += [f"{INDEX} says that {file.name} holds {n!r}, and it does not" for n in lost]

    def part(name: str, out: np.ndarray, index: Index) -> None:
        files.read_part(tensors[name], out, index)

    def value(name: str) -> Any:
        found = mapped(tensors[name]) if mmap and jax.default_backend() == "cpu" else None
        return None if found is None else jax.device_put(found, may_alias=True)

    def into(name: str, out: np.ndarray, start: int) -> None:
        info = tensors[name]
        flat = info._replace(shape=(info.nbytes,), dtype=np.dtype(np.uint8))
        files.read_part(flat, out, (slice(start, start + out.nbytes),))

    return Source(where or str(folder), tensors, into, value, problems, read_part=part, workers=files.workers)


def one_version(folder: Path, read: Callable[[], T]) -> T:
    """What `read()` brings of a folder (or a file), read again if another process saved into it meanwhile.

    Files that are open stay what they were, so `read` opens those that are read later. Raises [`easyfn.LoadError`][] if
    there is no moment between two saves.
    """
    for _ in range(20):
        before, error = _stamps(folder), None
        try:
            found = read()
        except (ValueError, OSError) as raised:
            error = raised
        if _stamps(folder) == before:
            if error is not None:
                raise error
            return found
    raise LoadError(folder, ["it changes while it is read: another process saves into it. Read it when that is done"])


def _stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    """What tells whether the files of a checkpoint are those of before."""
    if folder.is_file():
        each = [folder]
    else:
        each = [p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")] if folder.is_dir() else []
    found: dict[str, tuple[int, ...]] = {}
    for path in each:
        with contextlib.suppress(OSError):
            stat = path.stat()
            found[path.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return found


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index: which file holds which tensor."""
    data = read_json(path, LoadError)
    if found := list(record({"weight_map": by_name(word)}, needs=("weight_map",))("", data)):
        raise LoadError(path, ["it is no index of safetensors files", *found])
    weight_map = data["weight_map"]
    for name in sorted(set(weight_map.values())):
        inside(path.parent, name)
    return weight_map


def inside(folder: Path, name: str) -> Path:
    """The file of a name that an index gives. It must lie in the folder: indices come from strangers."""
    pure = PurePosixPath(name)
    path = folder / name
    refused = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or not pure.parts
    try:
        refused = refused or any(len(os.fsencode(part)) > 255 for part in pure.parts)
        real, home = path.resolve(), folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file; or a link to itself
        raise LoadError(folder / INDEX, [f"it names {name!a:.80}, which is no file here ({error})"]) from None
    if not refused:
        allowed = [home]
        if home.parent.name == "snapshots":  # the cache of the hub: its snapshots are links to ../../blobs
            allowed.append(home.parent.parent / "blobs")
        refused = not any(real.is_relative_to(a) for a in allowed)
    if refused:
        raise LoadError(folder / INDEX, [f"it names a file outside its folder: {name!r:.300}; this is refused"])
    return path


def no_safetensors(folder: Path) -> LoadError:
    """The error for a folder without weights that we read: it names what is there instead, and the way out."""
    if (folder / "adapter_config.json").exists():
        message = (
            "this is a PEFT adapter, not a model: load the base model with ef.load(base) and then "
            f"ef.load_adapter(model, {str(folder)!r})"
        )
    elif pickles := sorted(p.name for pattern in PICKLES for p in folder.glob(pattern)):
        message = refuse_pickles(pickles)
    else:
        there = sorted(p.name for p in folder.iterdir())
        message = f"there is no {SINGLE} and no {INDEX}; it holds {', '.join(there[:12]) or 'nothing'}"
    return LoadError(folder, [message])


def refuse_pickles(names: Sequence[str]) -> str:
    return (
        f"there is no {SINGLE}, only {', '.join(names[:4])}: easyfn does not read such files, because unpickling "
        "can run any code. Convert them once, with torch: transformers.AutoModel.from_pretrained(path)"
        ".save_pretrained(new_path) writes safetensors; on the hub, look for a safetensors revision (refs/pr/...)"
    )
