"""`Engine`: requests join and leave a batch that runs on."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._dtype import dtype_of
from .._paged import free_memory, init_paged_cache, longest, page_bytes
from .._rows import number
from .._slots import find_slots
from .._weight import routed
from ..generation import checks
from ..generation.model import can_generate, encodes
from ..generation.result import Generation
from ..generation.stop import stop_table
from ..nn.cache import CrossKV, layer_cache
from ..nn.context import Runtime
from .programs import Board, Facts, Given, Programs, begin
from .request import EngineFull, Request
from .scheduler import Row, Scheduler
from .wanted import read


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """Counts of an [`easyfn.Engine`][]: requests `running` and `waiting`, pages, and since it was made: pages found with
    the same beginning (`prefix_hits`), `preemptions`, `steps`, programs compiled (`compiles`) and new `tokens`."""

    running: int
    waiting: int
    free_pages: int
    num_pages: int
    prefix_hits: int
    preemptions: int
    steps: int
    compiles: int
    tokens: int


class Engine:
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
            raise can_generate.missing(model, "An engine continues token ids, so it needs a language model.")
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
        self._processors = tuple(processors)
        self._dtype = dtype or dtype_of(model)
        self._sizes = {"num_pages": num_pages, "memory_fraction": memory_fraction}
        self._adapters = next((f.weight.names for f in find_slots(model) if routed.knows(type(f.weight))), None)
        self._encodes = encodes(model)
        self._impl = str(jax.random.key_impl(jax.random.key(0)))
        self._tables: dict[Any, np.ndarray] = {}

        self._pieces = _doubled(min(16, prefill_chunk), prefill_chunk)
        self._sources = _doubled(min(16, self.max_model_length), self.max_model_length)
        self._columns = self.max_model_length + prefill_chunk + 1  # of ids: a last piece may reach beyond
        cols = -(-self.max_model_length // page_size)
        self._batch = max_batch_size
        self._board, axes, pages = self._empty(max_batch_size, cols)
        prefix = prefix_cache and not self._encodes and all(a is None for a in axes)
        by_pages = any(a is None for a in axes)
        self._scheduler = Scheduler(max_batch_size, pages, page_size, by_pages=by_pages, prefix_cache=prefix)
        most = -(-(self.max_model_length + prefill_chunk) // page_size)
        few = min(cols, -(-64 // page_size))
        self._widths = _doubled(few, cols) if by_pages or not _stateful(axes) else [cols]
        self._piece_widths = _doubled(min(most, -(-256 // page_size)), most, 4)
        facts = Facts(
            rows=max_batch_size,
            vocab_size=model.config.vocab_size,
            page_size=page_size,
            impl=self._impl,
            adapters=self._adapters is not None,
            encodes=self._encodes,
            batch_axes=axes,
            processors=self._processors,
            runtime=runtime,
        )
        first = self._of_row(jax.jit(lambda: layer_cache(model, 1, self.max_model_length, self._dtype))())
        self._programs = Programs(model, facts, first)

        self._lock = threading.RLock()  # what submit and cancel touch: never held while the device works
        self._stepping = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._arrived: list[Request] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._next = 0
        self._steps = self._tokens = 0

    # --- asking

    def submit(
        self,
        ids: Any,
        *,
        key: Any = None,
        adapter: Any = None,
        config: Any = None,
        constraint: Any = None,
        **options: Any,
    ) -> Request:
        tokenizer = options.pop("tokenizer", None)
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        config = self.config if config is None else config
        wanted = read(self.model, ids, config, constraint, options, lambda words: self._table(words, tokenizer))
        self._check_room(wanted)
        data = self._key(key) if wanted.sample else None
        which = -1
        if adapter is not None:
            if self._adapters is None:
                raise ValueError("submit: the model holds no adapters; put them in: ef.with_adapters(base, {...})")
            which = number(adapter, self._adapters)
        with self._lock:
            waiting = len(self._arrived) + len(self._scheduler.waiting)
            if self.max_waiting is not None and waiting >= self.max_waiting:
                raise EngineFull(f"{waiting} requests wait already, and max_waiting={self.max_waiting}")
            request = Request(self, self._next, wanted, data, which)
            request._stop = _walk(wanted.stop, wanted.prompt)
            self._next += 1
            self._arrived.append(request)
            self._work.notify_all()
        return request

    def run(self, prompts: Iterable[Any], *, key: Any = None, **options: Any) -> list[Generation]:
        keys: Any = (None if key is None else jax.random.fold_in(key, i)[None] for i in range(2**31))
        requests = []
        for ids, own in zip(prompts, keys, strict=False):
            while True:
                try:
                    requests.append(self.submit(ids, key=own, **options))
                    break
                except EngineFull:
                    self._until(None, lambda: self._room())
        return [request.result() for request in requests]

    def _room(self) -> bool:
        with self._lock:
            return self.max_waiting is None or len(self._arrived) + len(self._scheduler.waiting) < self.max_waiting

    def _check_room(self, wanted: Any) -> None:
        if wanted.max_length > self.max_model_length or len(wanted.source) > self.max_model_length:
            longest = max(wanted.max_length, len(wanted.source))
            raise ValueError(
                f"submit: prompt and new tokens are {longest} long, and max_model_length={self.max_model_length}; "
                "ask for fewer (max_new_tokens=), or make the engine longer"
            )
        needed = self._scheduler.pages_of(wanted.max_length - 1)  # the last token is never run
        if needed > self._scheduler.pages.number:
            raise ValueError(
                f"submit: prompt and new tokens need {needed} pages, and the engine has {self._scheduler.pages.number}"
            )

    def _table(self, words: tuple[str, ...], tokenizer: Any) -> np.ndarray:
        if tokenizer is None:
            raise ValueError("submit: stop_strings need the tokenizer that says which text each token is: tokenizer=")
        known = (words, id(tokenizer))
        if known not in self._tables:
            self._tables[known] = stop_table(tokenizer, words, self.model.config.vocab_size)
        return self._tables[known]

    def _key(self, key: Any) -> np.ndarray:
        key = checks.keys(key, 1)
        if str(jax.random.key_impl(key)) != self._impl:
            raise ValueError(f"submit: a key of {jax.random.key_impl(key)}, and the engine's are of {self._impl}")
        data = np.asarray(jax.random.key_data(key))
        return np.asarray(_fold(data, self._impl)) if key.ndim == 0 else data[0]

    # --- stepping

    def step(self) -> list[Request]:
        with self._stepping:
            try:
                return self._step()
            except Exception as error:
                self._fail(error)
                raise

    def _step(self) -> list[Request]:
        scheduler = self._scheduler
        with self._lock:
            scheduler.waiting += self._arrived
            self._arrived.clear()
            gone = scheduler.drop_cancelled()
            for row in [r for r in scheduler.running if r.started]:
                if scheduler.rows[row.number] is row:
                    for other in scheduler.grow(row):
                        self._keep_memory(other)
            list(scheduler.admit())
            running = scheduler.running
        for request in gone:
            request._end("cancelled")
        decoding = [row for row in running if row.started]
        results: list[tuple[Row, Any, int]] = []
        budget = self.prefill_chunk
        for row in running:
            if row.started or budget < self._pieces[0]:
                continue
            budget -= self._prefill(row, budget, results)
        if decoding:
            tokens = self._decode(decoding)
            results += [(row, tokens, row.number) for row in decoding]
        if not results and not running:
            return gone
        self._steps += 1
        read = {id(tokens): np.asarray(tokens) for _, tokens, _ in results}
        told = []
        for row, tokens, place in results:
            row.request._take(int(read[id(tokens)][place]))
            self._tokens += 1
            told.append(row.request)
        with self._lock:
            for row in running:
                scheduler.name_pages(row)
                if row.request.done:
                    scheduler.leave(row)
        return gone + told

    def _prefill(self, row: Row, budget: int, results: list[Any]) -> int:
        """Runs the next piece of a row; the length of the piece."""
        left = row.target - row.length
        allowed = [size for size in self._pieces if size <= budget]
        fresh = row.length == 0
        if fresh and self._encodes:
            allowed = self._pieces[:1]
        size = next((size for size in allowed if size >= left), allowed[-1])
        count = min(left, size)
        request = row.request
        given = self._programs.given(1, self._width(row.length, size))
        self._fill(given, 0, row, count)
        given = self._bias(given, [(0, row)] if row.length + count == row.target else [])
        source = self._source(request._wanted.source) if fresh else None
        memory = (np.bool_(request._memory is None), self._memory(request))
        run = self._programs.prefill(
            self._board, given, row.number, self._history(request._all), size, source, memory, fresh
        )
        self._board, token = run()
        row.length += count
        if row.length == row.target:
            row.started = True
            request._memory = None
            results.append((row, token, 0))
        return size

    def _decode(self, rows: list[Row]) -> jax.Array:
        longest = max(row.length for row in rows) + 1
        width = next(w for w in self._widths if w * self.page_size >= longest)
        given = self._programs.given(self._batch, width)
        for row in self._scheduler.running:  # of those that are left alone too: a ring is written at its next place
            self._fill(given, row.number, row, 0)
        for row in rows:
            given.count[row.number] = 1
        given = self._bias(given, [(row.number, row) for row in rows])
        self._board, tokens = self._programs.decode(self._board, given)()
        for row in rows:
            row.length += 1
        return tokens

    def _fill(self, given: Given, place: int, row: Row, count: int) -> None:
        wanted = row.request._wanted
        given.length[place] = row.length
        given.count[place] = count
        given.prompt_length[place] = len(wanted.prompt)
        given.adapter[place] = row.request._adapter
        pages = row.pages[: given.table.shape[1]]
        given.table[place, : len(pages)] = pages
        given.numbers[place] = wanted.numbers
        given.eos[place] = wanted.decay
        if row.request._key is not None:
            given.keys[place] = row.request._key

    def _bias(self, given: Given, rows: list[tuple[int, Row]]) -> Given:
        found = {}
        for place, row in rows:
            bias = row.request._wanted.controls.row(row.request._all)
            if bias is not None:
                found[place] = bias
        if not found:
            return given
        bias = np.zeros(given.bias.shape, np.float32)
        for place, one in found.items():
            bias[place] = one
            given.biased[place] = True
        return given._replace(bias=bias)

    def _width(self, length: int, size: int) -> int:
        """How many pages a piece of `size` tokens is given after `length`."""
        if length == 0:
            return -(-size // self.page_size)
        return next(w for w in self._piece_widths if w * self.page_size >= length + size)

    def _history(self, known: Sequence[int]) -> np.ndarray:
        history = np.full((1, self._columns), -1, np.int32)
        history[0, : len(known)] = known
        return history

    def _source(self, source: Sequence[int]) -> Any:
        if not source:
            return None
        size = next(s for s in self._sources if s >= len(source))
        ids, mask = np.zeros((1, size), np.int32), np.zeros((1, size), np.int32)
        ids[0, : len(source)], mask[0, : len(source)] = source, 1
        return ids, mask

    # --- the caller's processors remember

    def _memory(self, request: Request | None) -> Any:
        if request is not None and request._memory is not None:
            return request._memory
        return jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), self._board.memories)

    def _keep_memory(self, row: Row) -> None:
        if row.started:
            keep = lambda x: np.asarray(x)[row.number : row.number + 1]
            row.request._memory = jax.tree.map(keep, self._board.memories)

    # --- the device's side

    def _empty(self, rows: int, cols: int) -> tuple[Board, tuple[int | None, ...], int]:
        sizes = dict(self._sizes)
        if sizes["num_pages"] is None and sizes["memory_fraction"] is None:
            shapes = jax.eval_shape(lambda: layer_cache(self.model, 1, self.max_model_length, self._dtype))
            one = page_bytes(shapes, self.page_size)
            sizes["num_pages"] = max(1, min(rows * cols, int(0.8 * free_memory()) // one if one else rows * cols))
        cache = init_paged_cache(
            self.model,
            page_size=self.page_size,
            max_model_length=self.max_model_length,
            dtype=self._dtype,
            batch_size=rows,
            **sizes,
        )
        ids = jnp.full((rows, self._columns), -1, jnp.int32)
        vocab = self.model.config.vocab_size
        memories = jax.eval_shape(lambda: begin(self._processors, ids[:1], vocab))
        memories = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), memories)
        leaves, kinds = jax.tree.leaves(cache.layers), cache.batch_axes
        pages = next((x.shape[-4] for x, a in zip(leaves, kinds, strict=True) if a is None), rows * cols)
        return Board(self._of_row(cache.layers), ids, memories), kinds, pages

    def _of_row(self, layers: Any) -> Any:
        """Caches with room for what an encoder says of the longest source."""
        cross = lambda node: isinstance(node, CrossKV)

        def widen(node: Any) -> Any:
            if not cross(node):
                return node
            add = self.max_model_length - node.k.shape[-2]
            pad = lambda x, axis: jnp.pad(x, [(0, add if i == x.ndim + axis else 0) for i in range(x.ndim)])
            return CrossKV(pad(node.k, -2), pad(node.v, -2), pad(node.segment_ids, -1))

        return jax.tree.map(widen, layers, is_leaf=cross)

    def warm_up(self) -> None:
        """Compiles every program that any request may need, and runs none of them: afterwards nothing compiles."""
        with self._stepping:
            for width in self._widths:
                self._programs.decode(self._board, self._programs.given(self._batch, width))
            history, memory = self._history(()), (np.bool_(True), self._memory(None))

            def piece(size: int, width: int, source: Any, fresh: bool) -> None:
                given = self._programs.given(1, width)
                self._programs.prefill(self._board, given, 0, history, size, source, memory, fresh)

            for size in self._pieces[:1] if self._encodes else self._pieces:
                for length in self._sources if self._encodes else [0]:
                    piece(size, self._width(0, size), self._source([0] * length), True)
            for size in self._pieces:
                for width in self._piece_widths:
                    if width * self.page_size > size:
                        piece(size, width, None, False)
            self._key(jax.random.key(0))

    # --- running on its own

    def start(self) -> Engine:
        with self._lock:
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._loop, name="easyfn-engine", daemon=True)
                self._thread.start()
        return self

    def close(self) -> None:
        with self._lock:
            thread, self._closing = self._thread, True
            self._work.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._stepping, self._lock:
            self._thread = None
            for request in [*self._arrived, *self._scheduler.waiting, *(r.request for r in self._scheduler.running)]:
                request.cancelled = True
            if self._arrived or self._busy():
                self._step()

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _busy(self) -> bool:
        return bool(self._arrived or self._scheduler.waiting or any(self._scheduler.rows))

    def _wake(self) -> None:
        with self._lock:
            self._work.notify_all()

    def _loop(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closing or self._busy())
                if self._closing:
                    return
            try:
                self.step()
            except Exception:  # every request was told
                continue

    def _until(self, request: Request | None, done: Callable[[], bool]) -> None:
        """Waits, or steps, until `done()`."""
        while not done():
            if self._thread is None:
                self.step()
            elif request is None:
                threading.Event().wait(0.005)
            else:
                with request._news:
                    request._news.wait_for(done, timeout=1.0)

    def _fail(self, error: Exception) -> None:
        """Tells every request, and begins anew: what was on the device may be gone."""
        with self._lock:
            told = [*self._arrived, *self._scheduler.waiting, *(row.request for row in self._scheduler.running)]
            self._arrived.clear()
            old = self._scheduler
            self._scheduler = Scheduler(
                len(old.rows), old.pages.number, old.page_size, by_pages=old.by_pages, prefix_cache=old.prefix_cache
            )
            for request in told:
                request._end("error", error)
        self._board = self._empty(self._batch, -(-self.max_model_length // self.page_size))[0]

    def stats(self) -> EngineStats:
        with self._lock:
            s = self._scheduler
            return EngineStats(
                running=sum(row is not None for row in s.rows),
                waiting=len(s.waiting) + len(self._arrived),
                free_pages=s.pages.free,
                num_pages=s.pages.number,
                prefix_hits=s.prefix_hits,
                preemptions=s.preemptions,
                steps=self._steps,
                compiles=self._programs.compiles,
                tokens=self._tokens,
            )


def _doubled(first: int, last: int, factor: int = 2) -> list[int]:
    """`first`, twice that, and so on, up to and with `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    return [*sizes, last]


def _stateful(axes: tuple[int | None, ...]) -> bool:
    return all(a is not None for a in axes)


def _walk(table: np.ndarray | None, ids: Sequence[int]) -> int:
    """The state of the automaton of stop strings after a prompt."""
    state = 0
    if table is not None:
        for token in ids:
            after = int(table[state, token])
            state = after if after >= 0 else -after - 1
    return state


def _fold_data(data: Any, impl: str) -> Any:
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(data, impl=impl), 0))


_fold = jax.jit(_fold_data, static_argnums=1)
