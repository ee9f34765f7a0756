"""The safetensors format: 8 bytes of length, a JSON header, the bytes of the tensors one after the other.

Written out here, because the `safetensors` package reads no float8 into numpy, and because we want to know where each
tensor lies: so it is read once, into the memory where it stays. A header is believed only where it agrees with the
size of the file, before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..core.atomic import written
from ..names.part import Index, runs

MAX_HEADER = 100_000_000
ALIGNMENT = 64  # XLA on CPU takes a buffer without a copy if it starts at a multiple of this
_CHUNK = 1 << 30  # Linux reads at most 2 GiB at once
_WRITTEN = 1 << 25  # object stores keep a copy of what is being written

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class BadFile(ValueError):
    """A file that is not what it says: truncated, or with a header that lies."""


class Held:
    """A file that stays open while anything refers to it: what takes its name meanwhile is another file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor)
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def read_at(self, target: memoryview, start: int) -> int:
        """Fills `target` from a byte of the file on; how many there were. Threads may read at once."""
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [target], start)
        with self.lock:
            os.lseek(self.descriptor, start, os.SEEK_SET)
            found = os.read(self.descriptor, len(target))
        target[: len(found)] = found
        return len(found)

    def open(self) -> Any:
        """The same file as Python's own, from its start."""
        file = os.fdopen(os.dup(self.descriptor), "rb", buffering=0)
        file.seek(0)
        return file


class Info(NamedTuple):
    """Where one tensor lies: `offset` counts from the start of the file.

    `kind` is that of a GGUF file; if its blocks are quantized, the array is uint8 and the last axis counts bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    file: PurePath | Held
    offset: int
    nbytes: int
    kind: str = ""


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, Info], dict[str, str]]:
    """The tensors of a file by name, and its metadata. Raises [`BadFile`][easyfn.io.safetensors.BadFile]."""
    held = Held(path)
    at = 0

    def read(count: int) -> bytes:
        nonlocal at
        found = bytearray(min(count, held.size))
        got = held.read_at(memoryview(found), at)
        at += got
        return bytes(found[:got])

    return parse_header(held, held.size, read)


def parse_header(
    path: PurePath | Held, size: int, read: Callable[[int], bytes]
) -> tuple[dict[str, Info], dict[str, str]]:
    """The same of a file of `size` bytes whose beginning `read(count)` brings, piece after piece."""
    first = read(8)
    if len(first) < 8:
        raise BadFile(f"{path}: {size} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER:
        raise BadFile(f"{path}: the header claims {length} bytes, more than {MAX_HEADER}; this is no safetensors file")
    if 8 + length > size:
        raise BadFile(f"{path}: the header claims {length} bytes and the file has {size}: it is truncated")
    text = read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadFile(f"{path}: the header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise BadFile(f"{path}: the header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    start = 8 + length
    tensors = {name: _info(path, name, entry, start, size) for name, entry in header.items()}
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            kind = "overlaps the one before it" if info.offset < end else "leaves a hole before it"
            raise BadFile(f"{path}: tensor {name!r} {kind} (it starts at byte {info.offset}, expected {end})")
        end += info.nbytes
    if end != size:
        raise BadFile(f"{path}: the tensors end at byte {end} and the file at {size}")
    return tensors, metadata


def _unique(path: PurePath | Held, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadFile(f"{path}: the header names a tensor twice")
    return found


def _info(path: PurePath | Held, name: str, entry: Any, start: int, size: int) -> Info:
    def natural(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise BadFile(f"{path}: tensor {name!r} has no dtype, shape and data_offsets") from None
    if not all(map(natural, (*shape, begin, end))):
        raise BadFile(
            f"{path}: tensor {name!r} has shape {list(shape)} and offsets {[begin, end]}: not natural numbers"
        )
    if not isinstance(kind, str) or kind not in DTYPES:
        raise BadFile(f"{path}: tensor {name!r} has dtype {kind!r}; easyfn reads {', '.join(DTYPES)}")
    dtype = DTYPES[kind]
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise BadFile(
            f"{path}: tensor {name!r} of {kind}{list(shape)} needs {needed} bytes, its offsets give {end - begin}"
        )
    if start + end > size:
        raise BadFile(f"{path}: tensor {name!r} ends at byte {start + end} and the file has {size}: it is truncated")
    return Info(dtype, shape, path, start + begin, needed)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that starts at a multiple of 64 bytes: `jax.device_put` takes it without a copy on CPU."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + nbytes].view(dtype).reshape(shape)


def read_into(info: Info, out: np.ndarray, *, start: int = 0) -> None:
    """Fills `out`, C-contiguous, with the bytes of a tensor from byte `start` of it."""
    _fill(held(info), info, bytes_of(out), start)


def read_part(info: Info, out: np.ndarray, index: Index) -> None:
    """Fills `out`, C-contiguous, with `tensor[index]`: no byte outside of it is read."""
    target = bytes_of(out)
    file = held(info)
    starts, length = runs(info.shape, info.dtype.itemsize, index)
    for n, start in enumerate(starts.tolist()):
        _fill(file, info, target[n * length : (n + 1) * length], start)


def held(info: Info) -> Held:
    """The file of a tensor, open."""
    return info.file if isinstance(info.file, Held) else Held(info.file)


def _fill(file: Held, info: Info, target: memoryview, start: int) -> None:
    done = 0
    while done < len(target):
        got = file.read_at(target[done : done + _CHUNK], info.offset + start + done)
        if not got:
            raise BadFile(f"{info.file}: the file ended while it was read")
        done += got


def mapped(info: Info) -> np.ndarray | None:
    """One tensor where it lies in the file, read only; `None` if it lies where XLA on CPU would have to copy it."""
    if info.offset % ALIGNMENT or not info.nbytes:
        return None
    return memory(info, info.dtype, info.shape)


def memory(info: Info, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of a tensor where they lie in the file, read only."""
    with held(info).open() as file:
        return np.memmap(file, dtype, "r", info.offset, shape)


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def read(info: Info) -> np.ndarray:
    """One tensor."""
    out = aligned(info.shape, info.dtype)
    read_into(info, out)
    return out


def order(shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> list[str]:
    """In which order tensors lie in a file: those of a multiple of 64 bytes first, so that they all start at one."""
    return sorted(shapes, key=lambda n: math.prod(shapes[n][0]) * shapes[n][1].itemsize % ALIGNMENT != 0)


def header_bytes(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Length and header of a file that holds tensors in the order of `shapes`, padded so that the data is aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (shape, dtype) in shapes.items():
        if np.dtype(dtype) not in _NAMES:
            raise ValueError(f"safetensors has no dtype for {dtype} (tensor {name!r})")
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file and flushes it to the disk. `arrays` come in the order of `shapes`, one at a time."""
    with written(path, buffering=0) as file:
        write_to(file, shapes, arrays, metadata)


def write_to(
    file: Any,
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the same to a file that is open for bytes."""
    _write_all(file, memoryview(header_bytes(shapes, metadata)))
    for (name, (shape, dtype)), array in zip(shapes.items(), arrays, strict=True):
        if tuple(array.shape) != tuple(shape) or array.dtype != dtype:
            raise ValueError(f"tensor {name!r}: announced {dtype}{shape}, got {array.dtype}{array.shape}")
        _write_all(file, bytes_of(np.ascontiguousarray(array)))


def _write_all(file: Any, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done : done + _WRITTEN])
