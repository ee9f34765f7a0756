"""What a request's own tokens forbid or favour next, worked out on the host and added to the logits on the device.

Each rule is that of a processor of `generation/processors.py`, in their order. They need no logits, so their numbers of
entries are no shape of a program: other words, other lists compile nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..generation.config import GenerationConfig, ids_of

Row = np.ndarray


class Controls:
    """The rules of one request; `row` makes what is added to the logits of its next token."""

    def __init__(
        self,
        c: GenerationConfig,
        *,
        prompt: Sequence[int],
        source: Sequence[int],
        max_length: int,
        vocab_size: int,
        constraint: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.biases = _sequences(c.sequence_bias or ())
        words = [w for w in c.bad_words_ids or () if w not in {(e,) for e in c.eos}]
        self.biases += _sequences([(w, -np.inf) for w in words])
        ngrams = ((c.no_repeat_ngram_size, None), (c.encoder_no_repeat_ngram_size, list(source)))
        self.ngrams = [(size, text) for size, text in ngrams if size]
        self.eos = list(c.eos)
        self.least = (len(prompt) + c.min_new_tokens if c.min_new_tokens else c.min_length or 0) if c.eos else 0
        self.forced = {}
        if c.forced_bos_token_id is not None:
            self.forced[1] = [c.forced_bos_token_id]
        if c.forced_eos_token_id is not None:
            self.forced[max_length - 1] = list(ids_of(c.forced_eos_token_id))
        self.suppressed = list(c.suppress_tokens or ())
        self.first = len(prompt) + (len(prompt) <= 1 and c.forced_bos_token_id is not None)
        self.begin = list(c.begin_suppress_tokens or ())
        self.constraint = constraint
        self.state = None if constraint is None else constraint.start()

    def advance(self, token: int) -> None:
        """Tells of a new token."""
        if self.constraint is not None:
            self.state = self.constraint.advance(self.state, token)

    def row(self, ids: Sequence[int]) -> Row | None:
        """float32 `(vocab,)` after the tokens `ids`, prompt included; `None` if nothing is to be added."""
        changes: list[tuple[Any, Any]] = []  # (where, what), in order
        for sequence, bias in self.biases:
            m = len(sequence) - 1
            if m <= len(ids) and tuple(ids[len(ids) - m :]) == sequence[:-1]:
                changes.append((sequence[-1], bias))
        for size, text in self.ngrams:
            banned = _repeats(ids, ids if text is None else text, size)
            if len(banned):
                changes.append((banned, -np.inf))
        if len(ids) < self.least:
            changes.append((self.eos, -np.inf))
        forced = self.forced.get(len(ids))
        suppressed = self.suppressed + (self.begin if len(ids) == self.first else [])
        allowed = None if self.constraint is None else self.constraint.allowed(self.state)
        if not changes and forced is None and not suppressed and allowed is None:
            return None
        row = np.zeros(self.vocab_size, np.float32)
        for where, what in changes:
            row[where] += what
        if forced is not None:
            row[:] = -np.inf
            row[forced] = 0.0
        row[suppressed] = -np.inf
        if allowed is not None:
            allowed = np.resize(np.asarray(allowed, bool), self.vocab_size) & (
                np.arange(self.vocab_size) < len(allowed)
            )
            free = allowed & (row > -np.inf)
            row = np.where(free if free.any() else allowed, np.where(free, row, 0.0), -np.inf).astype(np.float32)
        return row


def _sequences(biases: Any) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(int(i) for i in sequence), float(bias)) for sequence, bias in biases]


def _repeats(ids: Sequence[int], text: Sequence[int], size: int) -> np.ndarray:
    """The tokens after which a run of `size` tokens of `text` would be there again."""
    whole = np.asarray(text, np.int64)
    if len(whole) < size or len(ids) < size - 1:
        return whole[:0]
    windows = np.lib.stride_tricks.sliding_window_view(whole, size)
    tail = np.asarray(ids[len(ids) - (size - 1) :], np.int64)
    return np.unique(windows[(windows[:, :-1] == tail).all(axis=1), -1])
