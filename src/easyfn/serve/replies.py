"""The JSON of answers, whole and in pieces."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .errors import ApiError
from .scores import of_chat, of_completion


class Said(NamedTuple):
    """An answer, or the next of it."""

    text: str = ""
    scores: Any = None
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
    first: Callable[[int], dict[str, Any]] | None  # a piece before the first text
    ends_scored: bool  # whether the token that ends an answer has scores too

    def writer(self, job: Any) -> Envelope:
        """What writes the answer to a `Job`."""
        return Envelope(self, job)


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


def _role(index: int) -> dict[str, Any]:
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


COMPLETION = Shape("cmpl-", "text_completion", "text_completion", _text, _text, of_completion, None, True)
CHAT = Shape("chatcmpl-", "chat.completion", "chat.completion.chunk", _message, _delta, of_chat, _role, False)


class Envelope:
    """What is the same around every piece of one answer."""

    def __init__(self, shape: Shape, job: Any) -> None:
        self.shape, self.job = shape, job
        self._same = {"id": shape.prefix + uuid.uuid4().hex, "created": int(time.time()), "model": job.asked.model}

    def whole(self, found: Mapping[int, tuple[Said, str | None]]) -> dict[str, Any]:
        choices = [self.shape.whole(n, *found[i]) for n, i in enumerate(self.job.kept())]
        return {**self._same, "object": self.shape.whole_name, "choices": choices, "usage": self._usage()}

    def begin(self) -> Iterator[bytes]:
        if (first := self.shape.first) is not None:
            for i in range(len(self.job.answers)):
                yield self._piece([first(i)])

    def piece(self, i: int, said: Said, reason: str | None) -> Iterator[bytes]:
        if said != Said():
            yield self._piece([self.shape.piece(i, said, None)])
        if reason is not None:
            yield self._piece([self.shape.piece(i, Said(), reason)])

    def end(self) -> Iterator[bytes]:
        if self.job.asked.include_usage:
            yield self._piece([], self._usage())
        yield b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> bytes:
        return event(error.as_json())

    def _piece(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        return event({**self._same, "object": self.shape.piece_name, "choices": choices, "usage": usage})

    def _usage(self) -> dict[str, int]:
        prompt, completion = self.job.counts()
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(data: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
