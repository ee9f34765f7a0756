"""What a client sent, field by field. A bad value is refused under the name of its parameter; null is unset."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ..core.tree import near
from .errors import ApiError, bad

Body = Mapping[str, Any]

# What changes no token of an answer.
HARMLESS = frozenset(
    [
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    ]
)

# What would change an answer and cannot be had: the values that turn each off, and what to do instead.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "it is of /v1/completions: ask for n answers and choose"),
    "suffix": (("",), "the models that are served continue a text, and fill in none"),
    "functions": (([],), "give tools, which replaced it"),
    "function_call": (("none",), "give tools and tool_choice, which replaced it"),
    "parallel_tool_calls": ((True,), "a call is the text that the model writes; say so in a message"),
    "modalities": ((["text"],), "text is all that there is"),
    "audio": ((), "text is all that there is"),
    "reasoning_effort": ((), "give what the chat template knows in chat_template_kwargs"),
    "verbosity": ((), "say so in a message"),
    "web_search_options": ((), "this server searches nothing"),
}


async def read(request: Request, most: int) -> bytes:
    """The body of a request, of at most `most` bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # other types may come from any web page that a browser shows
        raise ApiError(415, f"the body must be JSON, with the header Content-Type: application/json, not {kind!r}")
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise ApiError(413, f"the body is larger than the {most} bytes that this server reads")
    except ClientDisconnect as error:
        raise ApiError(400, "the client went away") from error
    return bytes(data)


def parse(data: bytes) -> dict[str, Any]:
    """The object that a body holds."""
    try:
        body = json.loads(data, parse_constant=_no_number)
        if b"\\ud" in data.lower():  # half of a pair of surrogates is no text
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(body).__name__}")
    return {name: value for name, value in body.items() if value is not None}


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def check_names(
    body: Body, known: Collection[str], refused: Mapping[str, tuple[tuple[Any, ...], str]] = REFUSED
) -> None:
    """Refuses what is not known and would change the answer."""
    for name, value in body.items():
        if name in known or name in HARMLESS:
            continue
        off, why = refused.get(name, ((), ""))
        if not why:
            raise bad(name, f"unknown parameter {name}. {near(name[:64], sorted(known))}", "unknown_parameter")
        if not any(type(value) is type(o) and value == o for o in off):
            raise bad(name, f"{name}={value!r} is not supported: {why}", "unsupported_parameter")


def flag(body: Body, name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise bad(name, f"{name} must be true or false, not {value!r}", "invalid_type")
    return value


def number(body: Body, name: str, low: float, high: float, default: Any = None) -> Any:
    value = body.get(name, default)
    if value is default:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad(name, f"{name} must be a number, not {value!r}", "invalid_type")
    if not low <= value <= high:
        raise bad(name, f"{name}={value} must be between {low:g} and {high:g}")
    return float(value)


def count(body: Body, name: str, low: int, high: int | None = None, default: Any = None) -> Any:
    value = body.get(name, default)
    if value is default:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(name, f"{name} must be an integer, not {value!r}", "invalid_type")
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise bad(name, f"{name}={value} must be {wanted}")
    return value


def texts(body: Body, name: str, most: int, longest: int) -> tuple[str, ...]:
    """A string or a list of them."""
    value = body.get(name, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(s, str) and s for s in value):
        raise bad(name, f"{name} must be a string or a list of strings, none of them empty", "invalid_type")
    if len(value) > most or any(len(s) > longest for s in value):
        raise bad(name, f"{name} must be at most {most} strings of at most {longest} characters")
    return tuple(value)


def is_ids(value: Any) -> bool:
    """Whether a value is a list of token ids."""
    return isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


def ids(body: Body, name: str, vocab_size: int) -> list[int]:
    value = body.get(name, [])
    if not is_ids(value):
        raise bad(name, f"{name} must be a list of token ids, not {value!r}", "invalid_type")
    for i in value:
        token(name, i, vocab_size)
    return value


def token(name: str, i: int, vocab_size: int) -> None:
    if not 0 <= i < vocab_size:
        raise bad(name, f"{name} holds {i}, outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})")
