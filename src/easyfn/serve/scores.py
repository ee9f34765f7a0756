"""Log-probabilities as OpenAI's two endpoints write them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Scored(NamedTuple):
    """A token of an answer."""

    token: int
    logprob: float
    best: dict[int, float]  # the likeliest, by id


def words_of(tokenizer: Any) -> Callable[[int], str]:
    """The text of a token as it is inside of a text: some tokenizers write the space before a word between two words only."""

    @functools.lru_cache(maxsize=65536)
    def word(token: int) -> str:
        once, twice = (tokenizer.decode([token] * n, skip_special_tokens=False) for n in (1, 2))
        return twice[len(once) :] if twice.startswith(once) else once

    return word


def of_completion(scored: Sequence[Scored], word: Callable[[int], str], offset: int) -> dict[str, Any]:
    """Lists, one entry a token, the first of which is `offset` characters into the text."""
    words = [word(one.token) for one in scored]
    offsets = [offset + sum(map(len, words[:n])) for n in range(len(words))]
    each = [{**{word(i): p for i, p in reversed(one.best.items())}, word(one.token): one.logprob} for one in scored]
    return {
        "tokens": words,
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": each,
        "text_offset": offsets,
    }


def of_chat(scored: Sequence[Scored], word: Callable[[int], str], offset: int) -> dict[str, Any]:
    """An object for each token."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = word(token)
        data = None if "\ufffd" in text else list(text.encode())  # a part of a character has no text of its own
        return {"token": text, "logprob": logprob, "bytes": data}

    content = [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(i, p) for i, p in one.best.items()]} for one in scored
    ]
    return {"content": content, "refusal": None}
