"""The process in which tables of a schema are made: arrays of the vocabulary and the schema come in, the tables or the reason
why there are none go out. It imports no JAX."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows has no such bound
    resource = None  # type: ignore[assignment]


def packed(**arrays: Any) -> bytes:
    """Arrays, bytes and texts as one block of bytes."""
    as_array = lambda x: np.frombuffer(x.encode() if isinstance(x, str) else x, np.uint8)
    made: dict[str, Any] = {n: as_array(x) if isinstance(x, (str, bytes)) else np.asarray(x) for n, x in arrays.items()}
    block = io.BytesIO()
    np.savez(block, **made)
    return block.getvalue()


def unpacked(block: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(block), allow_pickle=False) as arrays:
        return dict(arrays)


def main() -> None:
    given = unpacked(sys.stdin.buffer.read())
    memory = int(given["memory"])
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        said = _made(given)
    except MemoryError:
        said = packed(refused=f"it needs more than {memory >> 20} MiB of memory")
    except (ImportError, TypeError, ValueError, RecursionError) as error:
        said = packed(refused=str(error))
    sys.stdout.buffer.write(said)


def _made(given: dict[str, Any]) -> bytes:
    from .constraint_schema import pattern_of
    from .constraint_tables import automaton, token_tables

    machine = automaton(pattern_of(json.loads(given["schema"].tobytes())))
    letters, ends = given["letters"].tobytes(), np.cumsum(given["lengths"]).tolist()
    starts = [0, *ends]
    texts = {i: letters[a:b] for i, a, b in zip(given["ids"].tolist(), starts, ends, strict=False)}
    tables = token_tables(machine, texts, tuple(given["ends"].tolist()), int(given["size"]))
    if tables is None:
        return packed(refused="no tokens of the vocabulary make a text of the schema")
    return packed(**tables._asdict())


if __name__ == "__main__":
    main()
