"""Of which types the values are that a JSON schema allows, and whether two schemas are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def kinds_of(value: Any) -> set[str]:
    """The types that a value is of."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, (int, float)):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {"string"} if isinstance(value, str) else {"object"} if isinstance(value, Mapping) else {"array"}


def types_of(schema: Any) -> set[str]:
    """The types that a schema may allow; all of them if it does not say."""
    if not isinstance(schema, Mapping):
        return set(TYPES)
    values = _values(schema)
    if values is not None:
        return set().union(*map(kinds_of, values))
    kinds = schema.get("type", TYPES)
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    return kinds | ({"integer"} if "number" in kinds else set())


def apart(one: Any, other: Any) -> bool:
    """Whether two schemas certainly allow no value together."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one is False or other is False
    if not types_of(one) & types_of(other):
        return True
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not any(value in others for value in values)
    if types_of(one) | types_of(other) != {"object"}:
        return False
    both = set(one.get("required", ())) & set(other.get("required", ()))
    of = lambda schema, name: schema.get("properties", {}).get(name, True)
    return any(apart(of(one, name), of(other, name)) for name in both)


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """All the values that a schema allows, if it lists them."""
    return schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
