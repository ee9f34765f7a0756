"""The messages of a chat, as chat templates know them, and the pictures among them."""

from __future__ import annotations

import json
from typing import Any

from .body import Body
from .errors import bad
from .images import Images


def messages_of(body: Body, images: Images | None) -> tuple[list[dict[str, Any]], list[Any]]:
    """Every message with one text, and the arguments of tool calls as objects; and the pictures.

    With `images` a message's content is a list of parts, as templates of models with images want it:
    `{"type": "text", "text": ...}` and `{"type": "image"}`.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "messages must be a list of at least one message")
    pictures: list[Any] = []
    read = [_message(message, f"messages[{i}]", images, pictures) for i, message in enumerate(messages)]
    return read, pictures


def _message(message: Any, where: str, images: Images | None, pictures: list[Any]) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad("messages", f"{where} must be an object with a role", "invalid_type")
    message = {name: value for name, value in message.items() if value is not None}
    calls = message.get("tool_calls")
    if "content" in message:
        message["content"] = _content(message["content"], where, images, pictures)
    elif message["role"] != "assistant":
        raise bad("messages", f"{where} has no content")
    else:
        message["content"] = "" if images is None else []
    if calls is not None:
        if not isinstance(calls, list) or not all(isinstance(c, dict) for c in calls):
            raise bad("messages", f"{where}.tool_calls must be a list of objects", "invalid_type")
        message["tool_calls"] = [_call(call) for call in calls]
    return message


def _content(content: Any, where: str, images: Images | None, pictures: list[Any]) -> Any:
    if isinstance(content, str):
        return content if images is None else [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise bad("messages", f"{where}.content must be a string or a list of parts", "invalid_type")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind == "image_url" and images is not None:
            if len(pictures) == images.most:
                raise bad("messages", f"there are more than {images.most} images, the most of one request")
            pictures.append(images.read(part, where))
            parts.append({"type": "image"})
        else:
            known = "'text' only" if images is None else "'text' and 'image_url'"
            raise bad("messages", f"{where} has a part of type {kind!r}: this server reads parts of type {known}")
    return "\n".join(part["text"] for part in parts) if images is None else parts


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
