"""The text of an answer as its tokens come, up to the first of its stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..generation.stream import Text
from .scores import Scored

_CONTEXT = 4  # tokens of the prompt that the first new one is decoded beside: it may begin with a space


class Answer:
    """What may be said of one request so far. `reason` is why there is no more: "stop", "length", or what went wrong."""

    def __init__(
        self,
        request: Any,
        tokenizer: Any,
        stop: Sequence[str],
        ends: frozenset[int],
        before: Sequence[int],
        *,
        at: int = 0,
        ends_scored: bool = False,
    ) -> None:
        self.request = request
        self._at = at  # characters said
        self._ends_scored = ends_scored
        self.tokens = 0
        self.scored: list[Scored] = []  # tokens that are text, if they have scores
        self.reason: str | None = None
        self._text = Text(tokenizer)
        self._text.ids = list(before[-_CONTEXT:])
        self._text.told = len(self._text.ids)
        self._stop = stop
        self._ends = ends
        self._held = ""  # it may be the beginning of a stop string

    def take(self, token: int | None) -> str:
        """The text that is certain after one more token; `None` is the end."""
        if token is None:
            self.reason = self.request.finish_reason
            text = self._before_stop(self._text.rest())
            return text + self._held
        self.tokens += 1
        end = token in self._ends  # it is no text
        if self.tokens <= len(self.request.logprobs) and (self._ends_scored or not end):
            logprob, best = self.request.logprobs[self.tokens - 1]
            self.scored.append(Scored(token, logprob, best, self._at))
        new = "" if end else self._text.add(token)
        self._at += len(new)
        return self._before_stop(new)

    def _before_stop(self, new: str) -> str:
        text = self._held + new
        if ends := [at for word in self._stop if (at := text.find(word)) >= 0]:
            self.reason, self._held = "stop", ""
            return text[: min(ends)]
        keep = max(
            (k for word in self._stop for k in range(1, min(len(word), len(text) + 1)) if text.endswith(word[:k])),
            default=0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
