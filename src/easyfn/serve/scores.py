"""Log-probabilities as OpenAI's two endpoints write them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..generation.stop import token_texts
from ..generation.stream import Text


class Scored(NamedTuple):
    """A token of an answer, or of a prompt, the first of which has no score."""

    token: int
    logprob: float | None
    best: dict[int, float] | None  # the likeliest, by id
    at: int  # where in the text it begins, in characters


class Words:
    """The text of a token as it is inside of a text: some tokenizers write the space before a word between two words only. A
    token that is a part of a character is `bytes:` and its bytes, as OpenAI writes it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = functools.lru_cache(maxsize=65536)(self._text)

    def _text(self, token: int) -> str:
        once, twice = (self.tokenizer.decode([token] * n, skip_special_tokens=False) for n in (1, 2))
        text = twice[len(once) :] if twice.startswith(once) else once
        if "\ufffd" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_texts(self.tokenizer).get(token, b""))

    def data(self, token: int) -> list[int]:
        text = self.text(token)
        return list(token_texts(self.tokenizer).get(token, b"") if text.startswith("bytes:\\x") else text.encode())


def of_prompt(request: Any, tokenizer: Any, length: int) -> list[Scored]:
    """The tokens of a prompt whose text has `length` characters."""
    text, at, found = Text(tokenizer), 0, []
    for token, scores in zip(request.prompt, request.prompt_logprobs, strict=True):
        logprob, best = scores or (None, None)
        found.append(Scored(token, logprob, best, min(at, length)))
        at += len(text.add(token))
    return found


def of_completion(scored: Sequence[Scored], words: Words) -> dict[str, Any]:
    """Lists, one entry a token."""

    def best(one: Scored) -> dict[str, float | None] | None:
        if one.best is None:
            return None
        return {**{words.text(i): p for i, p in reversed(one.best.items())}, words.text(one.token): one.logprob}

    return {
        "tokens": [words.text(one.token) for one in scored],
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [best(one) for one in scored],
        "text_offset": [one.at for one in scored],
    }


def of_chat(scored: Sequence[Scored], words: Words) -> dict[str, Any]:
    """An object for each token."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": words.text(token), "logprob": logprob, "bytes": words.data(token)}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(i, p) for i, p in (one.best or {}).items()]}
        for one in scored
    ]
    return {"content": content, "refusal": None}
