"""An immutable, hashable mapping: how nested JSON lives in a static field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Frozen(Mapping[str, Any]):
    """A read-only dict with a hash. Nested dicts become `Frozen`, lists become tuples; `thaw` goes back."""

    __slots__ = ("_data", "_hash")

    def __init__(self, data: Mapping[Any, Any] | None = None, /, **more: Any) -> None:
        self._data = {str(k): freeze(v) for k, v in {**(data or {}), **more}.items()}
        self._hash: int | None = None

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._data.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Frozen) and self._data == other._data)

    def __repr__(self) -> str:
        return f"Frozen({self._data!r})"


def freeze(value: Any) -> Any:
    """JSON to its hashable form."""
    if isinstance(value, Frozen):
        return value
    if isinstance(value, Mapping):
        return Frozen({str(k): v for k, v in value.items()})  # transformers' id2label has integer keys
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    return value


def thaw(value: Any) -> Any:
    """The JSON that `freeze` was given."""
    if isinstance(value, Mapping):
        return {k: thaw(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [thaw(v) for v in value]
    return value
