"""The GGUF format (llama.cpp's): metadata by key, tensors by name, one file or several.

Written out here, because we want to know where each tensor lies, and because a header is believed only where it agrees
with the size of the file, before anything is allocated. Layout (ggml's docs/gguf.md, version 3, little endian): the
magic, the version, how many tensors and keys; the keys; name, dimensions (the last first), type and offset of every
tensor; and the tensors, each from a multiple of `general.alignment`.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ...core.atomic import written
from ..safetensors import BadFile, Held, Info

MAGIC = b"GGUF"
ALIGNMENT = 32

# What we read and write: the entries of a block and its bytes.
KINDS: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "MXFP4": (39, 32, 17),
}  # fmt: skip
FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What we refuse by its name.
OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip
_BY_NUMBER = {number: name for name, (number, _, _) in KINDS.items()}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEPTH = 4  # of arrays in arrays


class GGUF(NamedTuple):
    """The metadata and the tensors of a model; `values` are those that lie in no file yet."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Info]
    values: Mapping[str, np.ndarray] = {}


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """The header of a file, or of all the files of a split model, of which `path` is any.

    Raises `BadFile` for a file that is truncated or contradicts itself, and
    `ValueError` for tensors of a type that easyfn does not read (the `IQ` types), by name.
    """
    path = Path(path)
    first = _read_one(path)
    count = first.metadata.get("split.count", 0)
    if count in (0, 1):
        return first
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if found is None or int(found[2]) != count:
        raise BadFile(f"{path}: it is one of {count} files, which are named ...-00001-of-{count:05d}.gguf")
    each = [_read_one(path.with_name(f"{found[1]}-{n:05d}-of-{count:05d}.gguf")) for n in range(1, count + 1)]
    tensors: dict[str, Info] = {}
    for one in each:
        for name, info in one.tensors.items():
            if name in tensors:
                raise BadFile(f"{info.file}: tensor {name!r} is in {tensors[name].file.name} as well")
            tensors[name] = info
    if len(tensors) != each[0].metadata.get("split.tensors.count", len(tensors)):
        raise BadFile(f"{path}: the files hold {len(tensors)} tensors and the first one announces others")
    return GGUF(each[0].metadata, tensors)


class _Cursor:
    """Reads forward in a file and never past its end."""

    def __init__(self, path: Held, data: Any) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, size: int, what: str) -> int:
        """The place of the next `size` bytes."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise BadFile(
                f"{self.path}: {what} ends at byte {self.at} and the file has {len(self.data)}: it is truncated"
            )
        return start

    def number(self, kind: str, what: str) -> Any:
        size = struct.calcsize(f"<{kind}")
        return struct.unpack_from(f"<{kind}", self.data, self.take(size, what))[0]

    def text(self, what: str) -> str:
        size = self.number("Q", what)
        start = self.take(size, what)
        return bytes(self.data[start : start + size]).decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            found = self.number(_SCALARS[kind], what)
            return float(str(np.float32(found))) if kind == 6 else found  # 1e-5, not 9.999999747378752e-06
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY or depth == _DEPTH:
            raise BadFile(f"{self.path}: {what} is of the unknown type {kind}")
        inner, count = self.number("I", what), self.number("Q", what)
        if inner in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[inner]}")
            start = self.take(count * size, what)
            return np.frombuffer(self.data, f"<{_SCALARS[inner]}", count, start).tolist()
        if (
            count * 8 > len(self.data) - self.at
        ):  # before a list of that length is made: each has its own length at least
            raise BadFile(f"{self.path}: {what} claims {count} entries, more than the file can hold: it is truncated")
        return [self.value(inner, what, depth + 1) for _ in range(count)]


def _read_one(path: Path) -> GGUF:
    held = Held(path)
    with held.open() as file:
        if held.size < 24 or file.read(4) != MAGIC:
            raise BadFile(f"{path}: this is no GGUF file: it does not begin with {MAGIC.decode()!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_header(held, _Cursor(held, data))


def _read_header(path: Held, cursor: _Cursor) -> GGUF:
    cursor.at = 4
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        kind = "of big endian machines" if version & 0xFFFF == 0 else f"version {version}"
        raise BadFile(f"{path}: easyfn reads GGUF versions 2 and 3, little endian; this file is {kind}")
    tensor_count, key_count = cursor.number("Q", "the header"), cursor.number("Q", "the header")
    left = len(cursor.data) - cursor.at
    if tensor_count * 24 + key_count * 13 > left:
        raise BadFile(f"{path}: the header claims {tensor_count} tensors and {key_count} keys in {left} bytes")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text("a key")
        if key in metadata:
            raise BadFile(f"{path}: the key {key!r} is there twice")
        metadata[key] = cursor.value(cursor.number("I", key), f"the key {key!r}")
    entries = []
    for _ in range(tensor_count):
        name = cursor.text("the name of a tensor")
        dims = [cursor.number("Q", name) for _ in range(min(cursor.number("I", name), 9))]
        entries.append((name, tuple(reversed(dims)), cursor.number("I", name), cursor.number("Q", name)))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise BadFile(f"{path}: general.alignment={alignment!r} is no power of two")
    start = -(-cursor.at // alignment) * alignment
    return GGUF(metadata, _infos(path, entries, start, len(cursor.data), alignment))


def _infos(path: Held, entries: list[Any], start: int, size: int, alignment: int) -> dict[str, Info]:
    refused = {name: OTHERS.get(number, str(number)) for name, _, number, _ in entries if number not in _BY_NUMBER}
    if refused:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(refused.items())[:4])
        raise ValueError(
            f"{path}: easyfn does not read tensors of the types {', '.join(sorted(set(refused.values())))}: {shown}"
            f"{', ...' if len(refused) > 4 else ''}. It reads {', '.join(KINDS)}: take such a file of the same model"
        )
    tensors: dict[str, Info] = {}
    for name, shape, number, offset in entries:
        kind = _BY_NUMBER[number]
        _, block, nbytes = KINDS[kind]
        if name in tensors:
            raise BadFile(f"{path}: tensor {name!r} is there twice")
        if len(shape) > 8 or (shape and shape[-1] % block) or (not shape and block > 1):
            raise BadFile(f"{path}: tensor {name!r} of shape {shape} is not in blocks of {block} as {kind} is")
        if offset % alignment:
            raise BadFile(f"{path}: tensor {name!r} starts at {offset}, which is no multiple of {alignment}")
        needed = math.prod(shape) // block * nbytes
        if start + offset + needed > size:
            raise BadFile(
                f"{path}: tensor {name!r} ends at byte {start + offset + needed} and the file has {size}: it is truncated"
            )
        if kind in FLOATS:
            tensors[name] = Info(FLOATS[kind], shape, path, start + offset, needed, kind)
        else:
            packed = (*shape[:-1], shape[-1] // block * nbytes)
            tensors[name] = Info(np.dtype(np.uint8), packed, path, start + offset, needed, kind)
    end, before = 0, ""
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        if info.offset < end:
            raise BadFile(f"{path}: tensor {name!r} overlaps {before!r}")
        end, before = info.offset + info.nbytes, name
    return tensors


class Blocks(NamedTuple):
    """A tensor as a file holds it: its kind, and its bytes as uint8 `(..., rows, bytes of a row)`."""

    kind: str
    raw: np.ndarray


class Written(NamedTuple):
    """A tensor to be written: its kind, the shape of the dense tensor, and its bytes."""

    kind: str
    shape: tuple[int, ...]
    nbytes: int


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Written],
    arrays: Iterable[np.ndarray],
) -> None:
    """Writes a file and flushes it to the disk. `arrays` come in the order of `tensors`, one at a time.

    Values of the metadata are strings, booleans, integers (32 bits where they fit; signed in lists), floats (32 bits) and
    lists of these.
    """
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, data = _encode(key, value)
        head += [_text(key), struct.pack("<I", kind), data]
    offset = 0
    for name, (form, shape, nbytes) in tensors.items():
        head += [_text(name), struct.pack("<I", len(shape)), struct.pack(f"<{len(shape)}Q", *reversed(shape))]
        head.append(struct.pack("<IQ", KINDS[form][0], offset))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    with written(path) as file:
        text = b"".join(head)
        file.write(text + bytes(-len(text) % ALIGNMENT))
        for (name, wanted), array in zip(tensors.items(), arrays, strict=True):
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if raw.nbytes != wanted.nbytes:
                raise ValueError(f"tensor {name!r}: announced {wanted.nbytes} bytes, got {raw.nbytes}")
            file.write(raw)  # type: ignore[arg-type]
            file.write(bytes(-raw.nbytes % ALIGNMENT))


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _encode(key: str, value: Any) -> tuple[int, bytes]:
    """A value's type number and bytes."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        kind = 4 if 0 <= value < 2**32 else 5 if -(2**31) <= value < 0 else 11
        return kind, struct.pack(f"<{_SCALARS[kind]}", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return _STRING, _text(value)
    if isinstance(value, (list, tuple)):
        each = [_encode(key, v) for v in value]
        kinds = {kind for kind, _ in each}
        if (
            kinds and kinds <= {4, 5} and all(v < 2**31 for v in value)
        ):  # signed: llama.cpp takes the types of tokens in no other
            kinds, each = {5}, [(5, struct.pack("<i", v)) for v in value]
        if len(kinds) > 1:
            raise ValueError(f"metadata {key!r}: a list holds values of one type, this one several")
        kind = next(iter(kinds), _STRING)
        return _ARRAY, struct.pack("<IQ", kind, len(each)) + b"".join(data for _, data in each)
    raise ValueError(f"metadata {key!r}: GGUF has no type for {value!r}")
