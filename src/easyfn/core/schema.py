"""What the values of a JSON file must be: one table of keys, from which the checks and their errors are made.

A check is a function of the path of a value and the value, and gives a sentence for each thing that is wrong. A key that
a table does not name is left to whoever reads it; one that is missing is checked by `needs`.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Check = Callable[[str, Any], Iterator[str]]


def read_json(path: Path, error: Callable[[Any, list[str]], Exception]) -> Any:
    """The content of a JSON file; what is none is raised as `error(path, [why])`, a missing file as it is."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise
    except OSError as found:
        raise error(path, [f"it cannot be read ({found.strerror})"]) from None
    except (
        ValueError,
        RecursionError,
    ) as found:  # bad JSON, bad UTF-8, numbers of thousands of digits, endless nesting
        raise error(path, [f"it is no JSON ({found})"]) from None


def problems(data: Any, table: Mapping[str, Check], path: str = "") -> list[str]:
    """A sentence for each value of a JSON object that is not what the table says."""
    return list(record(table)(path, data))


def _is(wanted: str, holds: Callable[[Any], bool]) -> Check:
    def check(path: str, value: Any) -> Iterator[str]:
        if not holds(value):
            yield f"{path} is {reprlib.repr(value)}, and must be {wanted}"

    return check


def whole(low: int = 0, high: int = 2**31 - 1) -> Check:
    return _is(
        f"an integer of at least {low}" + ("" if high == 2**31 - 1 else f" and at most {high}"),
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def real(low: float | int = -1e30, high: float | int = 1e30) -> Check:
    def holds(v: Any) -> bool:
        return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and low <= v <= high

    def safe(v: Any) -> bool:
        try:
            return holds(v)
        except OverflowError:  # an integer that no float is
            return False

    return _is("a number" + (f" from {low} to {high}" if (low, high) != (-1e30, 1e30) else ""), safe)


flag = _is("true or false", lambda v: isinstance(v, bool))
word = _is("a string", lambda v: isinstance(v, str))
mapping = _is("an object", lambda v: isinstance(v, Mapping))


def _compiles(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return isinstance(value, str)


pattern = _is("a regular expression", _compiles)


def maybe(check: Check) -> Check:
    """Or null."""
    return lambda path, value: iter(()) if value is None else check(path, value)


def either(*checks: Check, wanted: str) -> Check:
    return _is(wanted, lambda v: any(not list(check("", v)) for check in checks))


def many(check: Check) -> Check:
    """A list of such."""

    def each(path: str, value: Any) -> Iterator[str]:
        if not isinstance(value, list | tuple):
            yield f"{path} is {reprlib.repr(value)}, and must be a list"
            return
        for i, one in enumerate(value):
            yield from check(f"{path}[{i}]", one)

    return each


def by_name(check: Check, key: Check = word) -> Check:
    """An object whose values are such."""

    def each(path: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{path} is {reprlib.repr(value)}, and must be an object"
            return
        for name, one in value.items():
            yield from key(f"a key of {path}", name)
            yield from check(f"{path}.{name}", one)

    return each


def record(table: Mapping[str, Check], needs: tuple[str, ...] = ()) -> Check:
    """An object with these keys, of which `needs` must be there."""

    def each(path: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{path or 'it'} is {reprlib.repr(value)}, and must be an object"
            return
        for key in needs:
            if key not in value:
                yield f"{path + '.' if path else ''}{key} is missing"
        for key, check in table.items():
            if key in value:
                yield from check(f"{path + '.' if path else ''}{key}", value[key])

    return each
