"""Values of a JSON file against the annotations of the fields that take them."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from ..core.frozen import Frozen, freeze


class AtLeast(NamedTuple):
    """`Annotated[int, AtLeast(1)]`: an integer that is not smaller. A plain `int` is at least 0."""

    limit: int


class Reader(NamedTuple):
    """`Annotated[Any, Reader(read)]`: what `read(value, where)` makes of the value; `None` stays `None`."""

    read: Callable[[Any, str], Any]


def _positive(value: Any, where: str) -> float | int:
    small = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
    if not small:
        raise ValueError(f"{where}={short(value)} must be a number above 0")
    return value


Size = Annotated[int, AtLeast(1)]
Positive = Annotated[Any, Reader(_positive)]  # what something is divided by
Integer = Annotated[int, AtLeast(-(2**63))]


class Mismatch(Exception):
    """What the value should have been; never leaves this room."""


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The annotations of a config class by field. Those that Python cannot resolve are not checked."""
    names = [f.name for f in dataclasses.fields(cls)]
    try:
        found = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError):
        return dict.fromkeys(names, Any)
    return {name: found[name] for name in names if typing.get_origin(found[name]) is not ClassVar}


def check(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value in its hashable form, as `hint` says; `ValueError` names the file, the key, and what it must be."""
    try:
        return _conform(value, hint, f"{where}: {name}")
    except Mismatch as error:
        raise ValueError(f"{where}: {name}={short(value)} must be {error}") from None


def short(value: Any) -> str:
    """The value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _conform(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return freeze(value)
    if origin is Annotated:
        for mark in hint.__metadata__:
            if isinstance(mark, Reader):
                return None if value is None else mark.read(value, where)
            if isinstance(mark, AtLeast):
                return _number(value, int, hint, mark.limit)
        return _conform(value, arguments[0], where)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, arguments, hint, where)
    if origin is tuple and isinstance(value, list | tuple):
        variadic = arguments[-1:] == (Ellipsis,)
        if variadic or len(arguments) == len(value):
            kinds = arguments[:1] * len(value) if variadic else arguments
            try:
                return tuple(_conform(v, kind, where) for v, kind in zip(value, kinds, strict=True))
            except Mismatch:
                raise Mismatch(said(hint)) from None
    if origin is Literal and any(value == a and type(value) is type(a) for a in arguments):
        return value
    if hint in (int, float):
        return _number(value, hint, hint, 0)
    kind = Mapping if hint is Frozen else hint
    if isinstance(kind, type) and isinstance(value, kind):
        return freeze(value)
    raise Mismatch(said(hint))


def _number(value: Any, kind: type, hint: Any, limit: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise Mismatch(said(hint))
    if kind is int and value < limit:
        raise Mismatch(said(hint))
    return value if kind is int else float(value)


def _one_of(value: Any, kinds: tuple[Any, ...], hint: Any, where: str) -> Any:
    exact = [k for k in kinds if k in (int, float) and type(value) is k]  # 1 stays 1 where `int | float` is asked
    for kind in (*exact, *kinds):
        try:
            return _conform(value, kind, where)
        except Mismatch:
            continue
    raise Mismatch(said(hint))


def said(hint: Any) -> str:
    """What a value of that annotation is, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = [m.limit for m in hint.__metadata__ if isinstance(m, AtLeast)]
        if hint == Integer:
            return "an integer"
        return f"an integer of at least {limits[0]}" if limits else said(arguments[0])
    if origin in (typing.Union, types.UnionType):
        numbers = {int, float} <= set(arguments)
        parts = [said(a) for a in arguments if not (numbers and a is int)]
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    if origin is tuple:
        if arguments[-1:] == (Ellipsis,):
            return f"a list, each {said(arguments[0])}"
        return f"a list of {len(arguments)}: {', '.join(map(said, arguments))}"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


_WORDS = {
    int: "an integer of at least 0",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
    Frozen: "an object",
    Mapping: "an object",
}
