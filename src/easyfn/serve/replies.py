"""The JSON of answers, whole and in pieces."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from .scores import of_chat, of_completion


class Said(NamedTuple):
    """An answer, or the next of it."""

    text: str = ""
    scores: dict[str, Any] | None = None
    calls: list[Any] | None = None  # of tools


@dataclasses.dataclass(frozen=True)
class Shape:
    """How an endpoint writes an answer: the names of its objects, and its choices from `(index, what is said, reason)`."""

    prefix: str
    whole_name: str
    piece_name: str
    whole: Callable[[int, Said, str | None], dict[str, Any]]
    piece: Callable[[int, Said, str | None], dict[str, Any]]
    scores: Callable[..., dict[str, Any]]  # `scores.py`
    first: Callable[[int, str], dict[str, Any] | None]  # a piece before the first text, from what is echoed


def _text(index: int, said: Said, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": said.text, "logprobs": said.scores, "finish_reason": reason}


def _message(index: int, said: Said, reason: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    if said.calls:
        message |= {"content": None, "tool_calls": said.calls}
    return {"index": index, "message": message, "logprobs": said.scores, "finish_reason": reason}


def _delta(index: int, said: Said, reason: str | None) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": said.text} if said.text else {}
    if said.calls:
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(said.calls)]
    return {"index": index, "delta": delta, "logprobs": said.scores, "finish_reason": reason}


def _role(index: int, echo: str) -> dict[str, Any]:
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def _echo(index: int, echo: str) -> dict[str, Any] | None:
    return _text(index, Said(echo), None) if echo else None


COMPLETION = Shape("cmpl-", "text_completion", "text_completion", _text, _text, of_completion, _echo)
CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", _message, _delta, of_chat, _role)


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
