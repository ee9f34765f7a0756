"""The JSON of answers, whole and in pieces."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Shape:
    """How an endpoint writes an answer: the names of its objects, and its choices from `(index, text, reason)`."""

    prefix: str
    whole_name: str
    piece_name: str
    whole: Callable[[int, str, str | None], dict[str, Any]]
    piece: Callable[[int, str, str | None], dict[str, Any]]
    first: Callable[[int, str], dict[str, Any] | None]  # a piece before the first text, from what is echoed


def _text(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _message(index: int, text: str, reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _delta(index: int, text: str, reason: str | None) -> dict[str, Any]:
    delta = {"content": text} if text else {}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _role(index: int, echo: str) -> dict[str, Any]:
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def _echo(index: int, echo: str) -> dict[str, Any] | None:
    return _text(index, echo, None) if echo else None


COMPLETION = Shape("cmpl-", "text_completion", "text_completion", _text, _text, _echo)
CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", _message, _delta, _role)


class Envelope:
    """What is the same around every piece of one answer."""

    def __init__(self, shape: Shape, model: str) -> None:
        self.shape = shape
        self._same = {"id": shape.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._same, "object": self.shape.whole_name, "choices": choices, "usage": usage}

    def piece(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        return event({**self._same, "object": self.shape.piece_name, "choices": choices, "usage": usage})


def event(data: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
