"""`Engine`: requests join and leave a batch that runs on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ..core.habits import taught
from ..core.rows import number
from ..forward.paged import longest
from ..generation import checks
from ..generation.model import can_generate
from ..generation.result import Generation
from ..generation.stop import stop_table
from ..nn.context import Runtime
from .device import Device
from .programs import News
from .request import EngineFull, Request
from .scheduler import Row, Scheduler
from .stats import EngineStats as EngineStats
from .times import Times
from .wanted import Wanted, read


class Engine:
    """Continuous batching: requests join and leave a running batch, each with the result that it would have alone.

    A step runs the next pieces of prompts, at most `prefill_chunk` tokens of them, and one more token of every row that
    has begun. Keys and values lie in pages ([`easyfn.init_paged_cache`][]) which rows take as they grow.

    - `max_batch_size`: the rows of a step. `max_model_length`: the longest prompt with its new tokens, by default what
      the config says; a shorter one makes fewer programs and smaller boards.
    - `page_size`, and `num_pages` or `memory_fraction`, as in `init_paged_cache`; by default there are pages for all
      rows at their longest, within 0.8 of the free memory. Where pages run out, the youngest request gives its own back
      and is run again later, from its tokens: its result stays the same.
    - `prefix_cache`: full pages of the same tokens (and the same adapter) are run once and shared; those that no row has
      are kept until their place is needed, the oldest first. This needs a model whose layers all keep pages: windows
      shorter than `max_model_length`, recurrent states and encoder-decoders leave it off.
    - `max_waiting`: beyond so many requests that wait, `submit` raises [`easyfn.EngineFull`][].
    - `config`: a `GenerationConfig` for the requests that bring none. `processors`: as in [`easyfn.generate`][], for all
      rows; each row is a batch of its own to them. `tokenizer`: for `stop_strings=`.
    - `dtype`: of the cache, by default the model's. `runtime`: see `easyfn.Runtime`.

    `times` are histograms of how long requests waited, and of their tokens; `trouble()` says what is wrong, if anything is.

    Programs are compiled for a few shapes when they are needed first, or all at once by `warm_up()`. Every method may be
    called from any thread. If a step fails, all requests end with `finish_reason="error"`, and the engine goes on empty.

    ```python
    import jax, numpy as np, easyfn as ef
    model = ef.testing.tiny()
    engine = ef.Engine(model, max_batch_size=2, max_model_length=32, page_size=8, prefill_chunk=8)
    one = engine.submit([5, 6, 7], max_new_tokens=4)
    two = engine.submit([8, 9], max_new_tokens=3, do_sample=True, key=jax.random.key(1))
    for token in one:  # steps the engine, for both
        print(token)
    alone = ef.generate(model, np.array([[8, 9]]), max_new_tokens=3, do_sample=True, key=jax.random.key(1))
    assert (two.result().sequences == alone.sequences).all()
    ```
    """

    @taught
    def __init__(
        self,
        model: Any,
        *,
        max_batch_size: int = 8,
        max_model_length: int | None = None,
        page_size: int = 16,
        num_pages: int | None = None,
        memory_fraction: float | None = None,
        prefill_chunk: int = 128,
        prefix_cache: bool = True,
        max_waiting: int | None = None,
        config: Any = None,
        processors: Sequence[Any] = (),
        tokenizer: Any = None,
        dtype: Any = None,
        runtime: Runtime = Runtime(),
    ) -> None:
        if not can_generate(model):
            raise can_generate.missing(
                model,
                "An engine continues token ids, so it needs a language model. (Vectors of texts need no engine: ef.embed, "
                "ef.serve.embeddings.)",
            )
        for name, value in (("max_batch_size", max_batch_size), ("prefill_chunk", prefill_chunk)):
            if value < 1:
                raise ValueError(f"Engine: {name}={value} must be at least 1")
        self.model = model
        self.max_model_length = longest(model, max_model_length)
        self.page_size = page_size
        self.prefill_chunk = prefill_chunk
        self.max_waiting = max_waiting
        self.config = config
        self.tokenizer = tokenizer
        self._device = Device(
            model,
            rows=max_batch_size,
            length=self.max_model_length,
            page_size=page_size,
            num_pages=num_pages,
            memory_fraction=memory_fraction,
            piece=prefill_chunk,
            processors=tuple(processors),
            dtype=dtype,
            runtime=runtime,
        )
        device = self._device
        self._scheduler = Scheduler(
            max_batch_size,
            device.num_pages,
            page_size,
            by_pages=device.by_pages,
            prefix_cache=prefix_cache and device.shareable,
        )
        self._tables: dict[Any, np.ndarray] = {}  # of stop strings
        self._lock = threading.RLock()  # of what submit and cancel touch: never held while the device works
        self._stepping = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._arrived: list[Request] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._submitted = self._steps = self._tokens = 0
        self._failures = 0  # since the last good step
        self._progress = time.monotonic()  # when anything went on
        self.times = Times()

    # --- requests

    def submit(
        self,
        ids: Any,
        *,
        key: Any = None,
        adapter: Any = None,
        config: Any = None,
        constraint: Any = None,
        tokenizer: Any = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        **options: Any,
    ) -> Request:
        """Puts one prompt in line and returns at once.

        - `ids`: integers `(tokens,)`; every one is a token, there is no padding. Of an encoder-decoder its source.
        - `key`, `config`, `options`: as in [`easyfn.generate`][] for a batch of this row alone; what a processor made of images
          (`pixel_values=`, `image_grid_thw=`, ...) too. A prompt with images is run as one piece, whatever `prefill_chunk`
          is, by a program for images of these shapes, and its pages are not shared.
        - `adapter`: one of the model's named adapters, see [`easyfn.with_adapters`][].
        - `constraint`: what the text must match, with `start() -> state`, `allowed(state) -> bool (vocab,)` and
          `advance(state, token) -> state`.
        - `logprobs`: so many of the likeliest tokens are told at each step, at most 20, with their log-probabilities and that of
          the token chosen: in `Request.logprobs`. They are the model's own, before temperature, penalties and constraints.

        - `prompt_logprobs`: the same of the tokens of the prompt, in `Request.prompt_logprobs`; all of it is run then, whatever
          pages know. With `max_new_tokens=0` nothing follows.

        Raises `ValueError` for bad input, for options that `generate` refuses and those that a row of a running batch
        cannot have (by name), and for what would never fit; [`easyfn.EngineFull`][] if `max_waiting` requests wait.
        """
        words = lambda strings: self._table(strings, self.tokenizer if tokenizer is None else tokenizer)
        usual = self.config if config is None else config
        wanted = read(self.model, ids, usual, constraint, options, words, logprobs, prompt_logprobs)
        self._check_room(wanted)
        data = self._key(key) if wanted.sample else None
        which = -1
        if adapter is not None:
            if self._device.adapters is None:
                raise ValueError("submit: the model holds no adapters. Put them in: ef.with_adapters(base, {...})")
            which = number(adapter, self._device.adapters)
        with self._lock:
            if not self._has_room():
                raise EngineFull(f"{self.max_waiting} requests wait already (max_waiting): come again later")
            request = Request(self, self._submitted, wanted, data, which)
            self._submitted += 1
            self._progress = self._progress if self._busy() else time.monotonic()
            self._arrived.append(request)
            self._work.notify_all()
        return request

    def run(self, prompts: Iterable[Any], *, key: Any = None, **options: Any) -> list[Generation]:
        """The results of several prompts, with the same options for all of them. With one `key`, prompt `i` draws from
        `fold_in(key, i)`, as row `i` of [`easyfn.generate`][]."""
        requests = []
        for i, ids in enumerate(prompts):
            own = None if key is None else jax.random.fold_in(key, i)[None]
            self._until(None, self._has_room)
            requests.append(self.submit(ids, key=own, **options))
        return [request.result() for request in requests]

    def _has_room(self) -> bool:
        with self._lock:
            return self.max_waiting is None or len(self._arrived) + len(self._scheduler.waiting) < self.max_waiting

    def _check_room(self, wanted: Wanted) -> None:
        most = max(wanted.max_length, len(wanted.source))
        if most > self.max_model_length:
            raise ValueError(
                f"submit: prompt and new tokens are {most} long, and max_model_length={self.max_model_length}; ask for "
                "fewer (max_new_tokens=), or make an engine for longer ones"
            )
        needed = self._scheduler.pages_of(wanted.max_length - 1)  # the last token is never run
        if needed > self._scheduler.pages.number:
            raise ValueError(
                f"submit: prompt and new tokens fill {needed} pages, and there are {self._scheduler.pages.number}; ask "
                "for fewer (max_new_tokens=), or make an engine with more (num_pages=)"
            )

    def _table(self, strings: tuple[str, ...], tokenizer: Any) -> np.ndarray:
        if tokenizer is None:
            raise ValueError("submit: stop_strings need the tokenizer that says which text each token is: tokenizer=")
        known = (strings, id(tokenizer))
        if known not in self._tables:
            self._tables[known] = stop_table(tokenizer, strings, self.model.config.vocab_size)
        return self._tables[known]

    def _key(self, key: Any) -> np.ndarray:
        """The data of the key that `generate` draws from for this row alone."""
        key = checks.keys(key, 1)
        if str(jax.random.key_impl(key)) != self._device.impl:
            raise ValueError(f"submit: a key of {jax.random.key_impl(key)}, and the engine's are {self._device.impl}")
        return np.asarray(_key_data(key))

    # --- steps

    def step(self) -> list[Request]:
        """One step of the device: the requests that got tokens or ended. If it fails, all requests are told, and it
        raises what went wrong."""
        with self._stepping:
            try:
                return self._step()
            except Exception as error:
                self._failures += 1
                self._fail(error)
                raise
            finally:
                self._progress = time.monotonic()

    def _step(self) -> list[Request]:
        scheduler, device = self._scheduler, self._device
        with self._lock:
            scheduler.waiting += self._arrived
            self._arrived.clear()
            gone = scheduler.drop_cancelled()
            for row in [r for r in scheduler.running if r.started]:
                if scheduler.rows[row.number] is row:  # it did not give way for an older one
                    for other in scheduler.grow(row):
                        device.keep_memory(other)
            scheduler.admit()
            running = scheduler.running
        for request in gone:
            request._end("cancelled")
        self.times.began(row.request for row in running)
        results: list[tuple[Row, News, int]] = []
        read: list[tuple[Request, int, int, Any]] = []  # pieces of prompts that are scored
        begun, budget = [row for row in running if row.started], self.prefill_chunk
        for row in running:
            if not row.started:
                start = row.length
                size, news = device.prefill(row, budget)
                budget -= size
                if news is not None:
                    read += [(row.request, start, row.length - start, news.prompt)] if row.request._unread else []
                    results += [(row, news, 0)] if row.started else []
                if size == 0:
                    break
        if begun:
            news = device.decode(begun, [row for row in running if row not in begun])
            results += [(row, news, row.number) for row in begun]
        if running:
            self._steps += 1
        tokens = {id(news): np.asarray(news.tokens) for _, news, _ in results}  # the host waits here, once
        scored = {id(news): news for row, news, _ in results if row.request._wanted.logprobs is not None}
        scores = {name: jax.device_get(news.scores) for name, news in scored.items()}
        for request, start, count, prompt in read:
            request._read(start, count, jax.device_get(prompt))
        for row, news, place in results:
            row.request._take(int(tokens[id(news)][place]), scores.get(id(news)), place)
            self.times.told(row.request)
        with self._lock:
            self._tokens, self._failures = self._tokens + len(results), 0
            for row in running:
                scheduler.name_pages(row)
                if row.request.done:
                    scheduler.leave(row)
        return gone + [row.request for row, _, _ in results]

    def _fail(self, error: Exception) -> None:
        """Tells every request, and begins anew."""
        with self._lock:
            told = [*self._arrived, *self._scheduler.waiting, *(row.request for row in self._scheduler.running)]
            self._arrived.clear()
            self._scheduler.clear()
        for request in told:
            if not request.done:
                request._end("error", error)
        self._device.reset()

    def warm_up(self) -> None:
        """Compiles every program that a request may need, and runs none of them: nothing compiles afterwards."""
        with self._stepping:
            self._device.warm_up()
            self._key(jax.random.key(0))

    def stats(self) -> EngineStats:
        """What is going on, as counts."""
        with self._lock:
            s = self._scheduler
            return EngineStats(
                running=len(s.running),
                waiting=len(s.waiting) + len(self._arrived),
                free_pages=s.pages.free,
                num_pages=s.pages.number,
                prefix_hits=s.prefix_hits,
                preemptions=s.preemptions,
                steps=self._steps,
                compiles=self._device.programs.compiles,
                tokens=self._tokens,
            )

    def trouble(self, patience: float = 120.0) -> str | None:
        """What is wrong with the engine, `None` if nothing is: its thread has ended; its last three steps failed; or there is
        work and no step has ended for `patience` seconds (a program that compiles takes its time, too: `warm_up()`)."""
        with self._lock:
            if self._thread is not None and not self._thread.is_alive():
                return "the thread that steps has ended"
            if self._failures >= 3:
                return f"the last {self._failures} steps failed"
            stuck = self._busy() and time.monotonic() - self._progress > patience
            return f"no step has ended for more than {patience:g} s" if stuck else None

    # --- a thread that steps

    def start(self) -> Engine:
        """Steps in a thread of its own whenever there is something to do; `with engine:` starts and closes it."""
        with self._lock:
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._loop, name="easyfn-engine", daemon=True)
                self._thread.start()
        return self

    def close(self) -> None:
        """Ends the thread, and cancels what is still under way. The engine can be used again."""
        with self._lock:
            thread, self._closing = self._thread, True
            self._work.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._stepping:
            with self._lock:
                self._thread = None
                rows = [row.request for row in self._scheduler.running]
                for request in [*self._arrived, *self._scheduler.waiting, *rows]:
                    request.cancelled = True
            if self._busy():
                self._step()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _busy(self) -> bool:
        return bool(self._arrived or self._scheduler.waiting or any(self._scheduler.rows))

    def _loop(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closing or self._busy())
                if self._closing:
                    return
            try:
                self.step()
            except Exception:  # every request was told, and those to come deserve a try
                continue

    def _until(self, request: Request | None, done: Callable[[], bool]) -> None:
        """Steps until `done()`, or waits where a thread steps."""
        while not done():
            if self._thread is None:
                self.step()
                continue
            news = self._work if request is None else request._news
            with news:
                news.wait_for(done, timeout=0.1)


def _data(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key[0] if key.ndim else jax.random.fold_in(key, 0))


_key_data = jax.jit(_data)
