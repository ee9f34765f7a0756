"""The messages and tools of a chat, as chat templates know them."""

from __future__ import annotations

import json
from typing import Any

from .body import Body
from .errors import bad


def messages_of(body: Body) -> list[dict[str, Any]]:
    """Every message with one text, and the arguments of tool calls as objects."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "messages must be a list of at least one message")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad("messages", f"{where} must be an object with a role", "invalid_type")
    message = {name: value for name, value in message.items() if value is not None}
    calls = message.get("tool_calls")
    if "content" in message:
        message["content"] = _content(message["content"], where)
    elif message["role"] != "assistant":
        raise bad("messages", f"{where} has no content")
    else:
        message["content"] = ""
    if calls is not None:
        if not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
            raise bad("messages", f"{where}.tool_calls must be a list of objects", "invalid_type")
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad("messages", f"{where}.content must be a string or a list of parts", "invalid_type")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad("messages", f"{where} has a part of type {kind!r}: this server reads parts of type 'text' only")
        texts.append(part["text"])
    return "\n".join(texts)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Templates write the arguments as JSON themselves; clients send them as a string of it."""
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            function = {**function, "arguments": json.loads(function["arguments"])}
        except ValueError:
            return call
        return {**call, "function": function}
    return call


def tools_of(body: Body) -> list[Any] | None:
    """What the template is told of tools. The model's calls come as the text that it writes."""
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if tools is not None and (not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools)):
        raise bad("tools", "tools must be a list of objects", "invalid_type")
    if choice not in ("auto", "none"):
        raise bad("tool_choice", f"tool_choice={choice!r} is not supported: the model chooses", "unsupported_parameter")
    return tools if tools and choice == "auto" else None
