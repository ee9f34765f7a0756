"""The items that a response goes on from, as the messages of a chat."""

from __future__ import annotations

from typing import Any

from .body import Body
from .errors import bad

_TEXTS = {"input_text", "output_text", "text"}


def messages_of_input(body: Body) -> list[dict[str, Any]]:
    """`instructions` as a system message, and `input`: a text, or items that are messages, calls of tools and their results."""
    instructions, given = body.get("instructions"), body.get("input")
    if instructions is not None and not isinstance(instructions, str):
        raise bad("instructions", "instructions must be a string", "invalid_type")
    given = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(given, list) or not given:
        raise bad("input", "input must be a string, or a list of at least one item")
    messages: list[dict[str, Any]] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for n, item in enumerate(given):
        _add(messages, item, f"input[{n}]")
    return messages


def _add(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message" and isinstance(item.get("role"), str):
        role = "system" if item["role"] == "developer" else item["role"]  # what templates call it
        messages.append({"role": role, "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        name, arguments, own = (_word(item, key, where) for key in ("name", "arguments", "call_id"))
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        call = {"id": own, "type": "function", "function": {"name": name, "arguments": arguments}}
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = _content(item.get("output"), where)
        messages.append({"role": "tool", "tool_call_id": _word(item, "call_id", where), "content": output})
    else:
        raise bad(
            "input",
            f"{where} is of type {kind!r}: this server reads messages, with a role and content, function_call and "
            "function_call_output, and keeps nothing that an item could refer to",
        )


def _word(item: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(item.get(name), str):
        raise bad("input", f"{where}.{name} must be a string", "invalid_type")
    return item[name]


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad("input", f"{where}: its text must be a string or a list of parts", "invalid_type")
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail", "auto")}}
    raise bad(
        "input",
        f"{where} has a part of type {kind!r}: this server reads input_text, output_text and input_image with a URL",
    )
