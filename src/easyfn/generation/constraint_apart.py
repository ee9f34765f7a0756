"""Constraints of schemas that strangers send: compiled in a process apart, with bounds of time, memory and size.

The compiler holds Python's lock for seconds at a time, and a thread cannot be ended; a process can.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from .constraint import Constraint, placed, vocabulary
from .constraint_tables import Tables
from .constraint_worker import packed, unpacked

_AT_ONCE = threading.BoundedSemaphore(2)
_IN_LINE = threading.BoundedSemaphore(8)  # those who wait hold a thread
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # whose stacks would count as memory


class CompilerBusy(RuntimeError):
    """Others' schemas are compiled just now: come again later."""


def json_schema_apart(
    schema: Any,
    tokenizer: Any,
    eos_token_id: Any,
    *,
    seconds: float = 10.0,
    memory: int = 2 * 2**30,
    largest: int = 64 * 2**20,
) -> Constraint:
    """[`easyfn.json_schema`][] for a schema of which nothing is known: `seconds` and bytes of `memory` are what its compiler may
    take, `largest` the bytes of its tables. `ValueError` beyond them, `CompilerBusy` where
    too many others wait."""
    texts, ends, size = vocabulary(tokenizer, eos_token_id)
    if not _IN_LINE.acquire(blocking=False):
        raise CompilerBusy("many schemas are compiled just now: ask again")
    try:
        if not _AT_ONCE.acquire(timeout=seconds):
            raise CompilerBusy("other schemas are compiled just now, and none was done in time: ask again")
        try:
            tables = _run(json.dumps(schema), texts, ends, size, seconds, memory)
        finally:
            _AT_ONCE.release()
    finally:
        _IN_LINE.release()
    if (bytes_ := tables.classes.nbytes + tables.after.nbytes) > largest:
        raise ValueError(f"json_schema: its tables have {bytes_ >> 20} MiB, more than {largest >> 20}; {_SMALLER}")
    return placed([tables])


_SMALLER = "bound less: every number that maxLength and maxItems count to is a state of its own"


def _run(schema: str, texts: dict[int, bytes], ends: tuple[int, ...], size: int, seconds: float, memory: int) -> Tables:
    given = packed(
        schema=schema,
        ids=np.fromiter(texts, np.int64, len(texts)),
        lengths=[len(text) for text in texts.values()],
        letters=b"".join(texts.values()),
        ends=ends,
        size=size,
        memory=memory,
    )
    here = str(Path(__file__).parents[2])
    paths = [here, *(path for path in sys.path if path)]
    environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    command = [sys.executable, "-P", "-m", "easyfn.generation.constraint_worker"]
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"json_schema: it takes more than {seconds:g} s to compile; {_SMALLER}") from None
    if done.returncode:  # a library below that found no memory ends the process
        raise ValueError(f"json_schema: it takes more than {memory >> 20} MiB to compile; {_SMALLER}")
    found = unpacked(done.stdout)
    if "refused" in found:
        raise ValueError(found["refused"].tobytes().decode())
    return Tables(**found)
