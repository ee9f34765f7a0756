"""A request: what the caller holds of one prompt in an engine."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..generation.result import Generation
from .sampler import Scores
from .wanted import Wanted


class EngineFull(RuntimeError):
    """As many requests wait already as `max_waiting` allows: come again later.

    ```python
    import easyfn as ef
    assert issubclass(ef.EngineFull, RuntimeError)
    ```
    """


class Request:
    """One prompt and its new tokens, made by [`easyfn.Engine`][]'s `submit`.

    - `id`: its number, in the order of arrival. `prompt`: the tokens that the new ones follow.
    - `tokens`: the new tokens so far. `done`: whether there will be no more.
    - `finish_reason`: `"stop"` (an id or a string that ends it), `"length"`, `"cancelled"`, `"error"`, or `None`.
    - `logprobs`: of each new token its log-probability and, by id, those of the likeliest, if `submit` was given `logprobs`.
    - `prompt_logprobs`: the same of each token of the prompt, `None` of the first, if `submit` was given `prompt_logprobs`; they
      are there before the first new token.
    - Iterating yields the new tokens as they come; `result()` waits for all of them. Both step the engine, unless its
      thread does.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    engine = ef.Engine(model, max_batch_size=1, max_model_length=16, prefill_chunk=8)
    request = engine.submit([5, 6, 7], max_new_tokens=9)
    request.subscribe(lambda token: print(token))
    for n, token in enumerate(request):
        if n == 1:
            request.cancel()
    assert request.finish_reason == "cancelled" and len(request.tokens) < 9
    ```
    """

    def __init__(self, engine: Any, number: int, wanted: Wanted, key: np.ndarray | None, adapter: int) -> None:
        self.id = number
        self.prompt = wanted.prompt
        self.tokens: list[int] = []
        self.logprobs: list[tuple[float, dict[int, float]]] = []
        self.prompt_logprobs: list[tuple[float, dict[int, float]] | None]
        self.prompt_logprobs = [] if wanted.prompt_logprobs is None else [None]
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self._arrived = self._latest = time.monotonic()  # the latest: when its last token came
        self._queued = True
        self._engine = engine
        self._all = list(wanted.prompt)  # and the new tokens
        self._wanted = wanted
        self._key = key
        self._adapter = adapter
        self._stop = _walk(wanted.stop, wanted.prompt)  # the state of the automaton of stop strings
        self._failure: Exception | None = None  # of its constraint
        self._memory: Any = None  # of the engine's processors, while the request waits for its second turn
        self._news = threading.Condition()
        self._callbacks: list[Callable[[int | None], Any]] = []

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    def __repr__(self) -> str:
        state = self.finish_reason or "under way"
        return f"<easyfn request {self.id}: {len(self.prompt)} + {len(self.tokens)} tokens, {state}>"

    def cancel(self) -> None:
        """No more tokens: the next step gives its pages back. Does nothing if it is done."""
        self.cancelled = True

    def subscribe(self, callback: Callable[[int | None], Any]) -> None:
        """`callback(token)` for every new token, those that came before first, and `callback(None)` at the end.

        It is called from the thread that steps the engine, and must not block; one that raises is called no more. An
        asyncio program gives `lambda token: loop.call_soon_threadsafe(queue.put_nowait, token)`.
        """
        with self._news:
            for token in self.tokens:
                callback(token)
            if self.done:
                callback(None)
            else:
                self._callbacks.append(callback)

    def __iter__(self) -> Iterator[int]:
        for told in itertools.count():
            self._engine._until(self, lambda told=told: len(self.tokens) > told or self.done)
            if told >= len(self.tokens):
                break
            yield self.tokens[told]
        self._raise()

    def result(self) -> Generation:
        """What [`easyfn.generate`][] returns for this prompt alone, `sequences` `(1, columns)`. A cancelled request has the
        tokens that it got. Raises `RuntimeError` if a step of the engine failed, or the request's own constraint."""
        self._engine._until(self, lambda: self.done)
        self._raise()
        tokens = np.asarray([[*self.prompt, *self.tokens]], np.int32)
        lengths = np.asarray([tokens.shape[1]], np.int32)
        return Generation(jnp.asarray(tokens), jnp.asarray(lengths), prompt_length=len(self.prompt))

    def _raise(self) -> None:
        if self.error is not None:
            raise RuntimeError(
                f"request {self.id} failed with its engine's step or its constraint: {self.error}"
            ) from self.error

    # --- the engine's side

    def _bias(self) -> np.ndarray | None:
        """What its rules add to its next logits. A constraint that fails ends its own request, no other."""
        try:
            return self._wanted.controls.row(self._all)
        except Exception as error:
            self._failure = error
            return None

    @property
    def _unread(self) -> bool:
        """Whether scores of its prompt are still to come."""
        return self._wanted.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt)

    def _read(self, start: int, count: int, scores: Scores) -> None:
        """What `count` tokens from place `start` say of those after them; a second turn says the same once more."""
        most = self._wanted.prompt_logprobs
        for own, best, ids in zip(*(np.asarray(x[:count]).tolist() for x in scores), strict=True):
            start += 1
            if start == len(self.prompt_logprobs) < len(self.prompt):
                self.prompt_logprobs.append((own, dict(zip(ids[:most], best[:most], strict=True))))

    def _take(self, token: int, scores: Scores | None = None, place: int = 0) -> None:
        """One more token, and perhaps the last; `scores` of all rows, of which `place` is this one's."""
        if self._failure is not None:
            return self._end("error", self._failure)
        w = self._wanted
        if len(self._all) >= w.max_length:  # it was for its prompt alone
            return self._end("length")
        reason = "stop" if token in w.eos else None
        if w.stop is not None:
            after = int(w.stop[self._stop, token])
            self._stop = after if after >= 0 else -after - 1
            reason = "stop" if after < 0 else reason
        if reason is None and len(self.prompt) + len(self.tokens) + 1 >= w.max_length:
            reason = "length"
        with self._news:
            if w.logprobs is not None and scores is not None:
                best = zip(scores.ids[place, : w.logprobs].tolist(), scores.best[place].tolist(), strict=False)
                self.logprobs.append((float(scores.own[place]), dict(best)))
            self.tokens.append(token)
            self._all.append(token)
            self._tell(token)
        if reason is not None:
            return self._end(reason)
        try:
            w.controls.advance(token)
        except Exception as error:
            self._end("error", error)

    def _end(self, reason: str, error: Exception | None = None) -> None:
        with self._news:
            self.error = error
            self.finish_reason = reason
            self._tell(None)
            self._callbacks.clear()
            self._news.notify_all()

    def _tell(self, token: int | None) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(token)
            except Exception:  # whoever listened is gone: its trouble is not that of the other requests
                self._callbacks.remove(callback)
        self._news.notify_all()


def _walk(table: np.ndarray | None, ids: Sequence[int]) -> int:
    """The state of the automaton after a prompt: a stop string in it stops nothing, but its end may begin another."""
    state = 0
    if table is None:
        return state
    for token in ids:
        after = int(table[state, token])
        state = after if after >= 0 else -after - 1
    return state
