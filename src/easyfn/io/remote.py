"""Checkpoints in object stores, by URL through fsspec: `gs://`, `s3://`, `http://`, ... (extra `remote`).

Tensors are read by ranges of bytes, those that are needed and no others; a store asked for many small ranges is slow, so
ranges that are close to each other are fetched as one. Nothing in a store can be renamed: `save` writes the tensors first,
under names that no earlier model there has, and then what refers to them.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..core.multihost import first, same_number
from ..names.part import Index, Runs, joined, runs
from .another import ADAPTER, another, going
from .checkpoint import CONFIG, GENERATION, INDEX, SINGLE, Files, LoadError
from .place import document
from .safetensors import BadFile, Info, bytes_of, parse_header, write_to
from .sentence import MODULES, settings_files
from .writing import Entry, index_of, write_all

GAP = 1 << 18  # bytes that are fetched for nothing, rather than to ask once more
WORKERS = 16
_HEAD = 1 << 16


class Remote(NamedTuple):
    """A checkpoint behind a URL: a folder of this machine with its JSON files, and the way to the tensors."""

    url: str
    folder: Path
    files: Files


def is_url(path: Any) -> bool:
    """Whether a path is a URL of something that is not on this machine's disk."""
    return isinstance(path, str) and re.match(r"[a-zA-Z][\w+.-]*(://|::)", path) is not None


def plain(path: Any) -> Any:
    """A path of this machine that was written as a URL, `file:///models/llama`, as the path."""
    return path.removeprefix("file://") if isinstance(path, str) else path


def open_store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        store, path = url_to_fs(url)
    except ImportError as error:
        raise ImportError(
            f"{url} needs a package for this kind of store ({error}): pip install 'easyfn[remote]' brings fsspec, gcsfs "
            "(gs://) and s3fs (s3://)"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}. A folder of this machine is written without '://'") from error
    return store, path.rstrip("/")


@contextlib.contextmanager
def opened(url: str) -> Iterator[Remote]:
    """A checkpoint behind a URL, for as long as it is read."""
    if url.endswith(".gguf"):
        raise ValueError(f"{url}: .gguf files are read from this machine's disk only; copy it there first")
    store, path = open_store(url)
    store.invalidate_cache()
    with tempfile.TemporaryDirectory(prefix="easyfn-") as name:
        folder = Path(name)
        if not _fetch(store, path, CONFIG, folder):
            raise LoadError(url, [f"there is no {CONFIG}"])
        for other in (GENERATION, INDEX, MODULES):
            _fetch(store, path, other, folder)
        for other in settings_files(folder) if (folder / MODULES).exists() else ():
            _fetch(store, path, other, folder)
        yield Remote(url, folder, _files(store, path, folder))


def _fetch(store: Any, path: str, name: str, folder: Path) -> bool:
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise LoadError(path, [f"modules.json names a file outside its folder: {name!r}; this is refused"])
    try:
        content = store.cat_file(f"{path}/{name}")
    except FileNotFoundError:
        return False
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return True


def fetch_all(url: str, patterns: Sequence[str]) -> dict[str, bytes]:
    """The files under a URL that patterns name, by their relative path."""
    store, path = open_store(url)
    found = sorted({str(name) for pattern in patterns for name in store.glob(f"{path}/{pattern}")})
    return {name.removeprefix("/").removeprefix(path.removeprefix("/") + "/"): store.cat_file(name) for name in found}


def _files(store: Any, path: str, folder: Path) -> Files:
    where = lambda file: f"{path}/{file.relative_to(folder).as_posix()}"

    def header(file: Path) -> tuple[dict[str, Info], dict[str, str]]:
        name = where(file)
        size = store.size(name)
        if size is None:
            raise BadFile(f"{name}: the server does not tell its size")
        held, at = store.cat_file(name, 0, min(_HEAD, size)), 0

        def read(count: int) -> bytes:
            nonlocal held, at
            if at + count > len(held):
                held += store.cat_file(name, len(held), at + count)
            at += count
            return held[at - count : at]

        return parse_header(PurePosixPath(name), size, read)

    def read_part(info: Info, out: np.ndarray, index: Index) -> None:
        target = bytes_of(out)
        found = runs(info.shape, info.dtype.itemsize, index)
        for group in joined(found, GAP):
            _read_group(store, info, found, group, target)

    return Files(lambda file: store.exists(where(file)), header, read_part, WORKERS)


def _read_group(store: Any, info: Info, found: Runs, group: slice, target: memoryview) -> None:
    starts, length = found.starts[group].tolist(), found.length
    start, end = starts[0], starts[-1] + length
    content = memoryview(store.cat_file(str(info.file), info.offset + start, info.offset + end))
    if len(content) != end - start:
        raise BadFile(f"{info.file}: asked for {end - start} bytes, got {len(content)}")
    for n, each in enumerate(starts, group.start):
        target[n * length : (n + 1) * length] = content[each - start : each - start + length]


def save_remote(
    url: str,
    shards: Mapping[str, Sequence[Entry]],
    documents: Mapping[str, Any],
    alone: bool,
    overwrite: bool | None = None,
) -> None:
    """Writes a model behind a URL. `documents` are its other files (JSON, or bytes), the config last. Raises
    `FileExistsError` where another checkpoint is, as `overwrite` of [`easyfn.save`][] says.

    Into an empty place the files come under their usual names, the config last: without it there is no model. Where one
    is already, the tensors come under new names; the index, which is one object and so is replaced at once, makes them
    the model, and then the tensors of the old one go. A crash in between leaves the old model or the new one (if it comes
    just before the index, with the new config).
    """
    store, path = open_store(url)
    store.invalidate_cache()
    with tempfile.TemporaryDirectory(prefix="easyfn-") as name:
        for each in (CONFIG, ADAPTER):
            _fetch(store, path, each, Path(name))
        there = another(Path(name), documents[CONFIG])
    goes = re.compile("")

    def look() -> None:
        nonlocal goes
        goes = going(there, url, overwrite)

    first(look, "save", alone)
    model = any(store.exists(f"{path}/{name}") for name in (SINGLE, INDEX))
    if number := same_number(int.from_bytes(np.random.default_rng().bytes(3), "big") + 1 if model else 0, alone):
        names = {n: f"model-{number:06x}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i, n in enumerate(shards)}
        shards = {names[n]: entries for n, entries in shards.items()}
        documents = {**{n: d for n, d in documents.items() if n != INDEX}, INDEX: index_of(shards)}

    def write(name: str, shapes: Any, arrays: Iterator[np.ndarray]) -> None:
        store.makedirs(path, exist_ok=True)
        with store.open(f"{path}/{name}", "wb") as file:
            write_to(file, shapes, arrays, {"format": "pt"})

    def finish() -> None:
        for name, data in documents.items():
            store.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
            store.pipe_file(f"{path}/{name}", document(data))
        store.invalidate_cache()
        made = {*shards, *(name.partition("/")[0] for name in documents)}
        for name in [str(f).rpartition("/")[2] for f in store.ls(path, detail=False)]:
            old_index = name == INDEX and INDEX not in documents
            if old_index or (re.fullmatch(r"model(-[\w-]+)?\.safetensors", name) and name not in shards):
                store.rm_file(f"{path}/{name}")
            elif there is not None and goes.fullmatch(name) and name not in made:
                store.rm(f"{path}/{name}", recursive=True)

    write_all(shards, write, finish, alone)
