"""The device's side of an engine: its board, and what the host sends along with each program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from ..core.dtype import dtype_of
from ..core.placement import mesh_of
from ..core.slots import find_slots
from ..core.weight import routed
from ..forward.paged import free_memory, init_paged_cache, page_bytes
from ..generation.model import decoder_prompt, encodes
from ..nn.cache.cache import CrossKV, layer_cache
from ..nn.context import Runtime
from .beside import padded
from .programs import Board, Facts, Given, News, Programs, begin
from .request import Request
from .scheduler import Row


class Device:
    """Runs pieces of prompts and steps of rows. `length` is that of the longest row, `piece` of the longest piece."""

    def __init__(
        self,
        model: Any,
        *,
        rows: int,
        length: int,
        page_size: int,
        num_pages: int | None,
        memory_fraction: float | None,
        piece: int,
        processors: tuple[Any, ...],
        dtype: Any,
        runtime: Runtime,
    ) -> None:
        self.model = model
        self.rows = rows
        self.length = length
        self.page_size = page_size
        self.processors = processors
        self.dtype = dtype or dtype_of(model)
        self.encodes = encodes(model)
        self.adapters = next((f.weight.names for f in find_slots(model) if routed.knows(type(f.weight))), None)
        self.impl = str(jax.random.key_impl(jax.random.key(0)))
        self.columns = length + piece + 1  # of ids: the last piece of a row may reach beyond it
        if num_pages is None and memory_fraction is None:
            num_pages = self._enough()
        self._sizes = {"num_pages": num_pages, "memory_fraction": memory_fraction}
        self.board, axes = self.empty()
        leaves = jax.tree.leaves(self.board.layers)
        pages = (x.shape[-4] for x, a in zip(leaves, axes, strict=True) if a is None)
        self.num_pages = next(pages, rows * self._most(length))  # of a model without pages: as if each row had its own
        self.by_pages = any(a is None for a in axes)
        self.shareable = all(a is None for a in axes) and not self.encodes

        # The shapes that programs are made for: lengths of pieces and of sources, pages of a step and of a piece.
        self.pieces = _doubled(min(16, piece), piece)
        self.sources = _doubled(min(16, length), length)
        whole, longest = self._most(length), self._most(length + piece)
        self.widths = _doubled(min(whole, self._most(128)), whole)
        self.piece_widths = _doubled(min(longest, self._most(1024)), longest, 4)
        facts = Facts(
            vocab_size=model.config.vocab_size,
            page_size=page_size,
            impl=self.impl,
            adapters=self.adapters is not None,
            encodes=self.encodes,
            batch_axes=axes,
            processors=processors,
            runtime=runtime,
        )
        first = jax.jit(lambda: self._with_sources(layer_cache(model, 1, length, self.dtype)))()
        self.programs = Programs(model, facts, first)

    def _most(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _enough(self) -> int:
        """Pages for all rows at their longest, as far as most of the free memory goes."""
        shapes = jax.eval_shape(lambda: layer_cache(self.model, 1, self.length, self.dtype))
        one, pages = page_bytes(shapes, self.page_size), self.rows * self._most(self.length)
        return max(1, min(pages, int(0.8 * free_memory()) // one)) if one else pages

    def empty(self) -> tuple[Board, tuple[int | None, ...]]:
        """A board on which nothing was written, and where the rows are in each of its caches."""
        cache = init_paged_cache(
            self.model,
            page_size=self.page_size,
            max_model_length=self.length,
            dtype=self.dtype,
            batch_size=self.rows,
            **self._sizes,
        )
        ids = jnp.full((self.rows, self.columns), -1, jnp.int32)
        memories = jax.eval_shape(lambda: begin(self.processors, ids[:1], self.model.config.vocab_size))
        memories = jax.tree.map(lambda x: jnp.zeros((self.rows, *x.shape[1:]), x.dtype), memories)
        board = Board(self._with_sources(cache.layers), ids, memories)
        return self._place(board, cache.batch_axes), cache.batch_axes

    def _place(self, board: Board, axes: tuple[int | None, ...]) -> Board:
        """On the mesh that the model lies on: pages by their heads over `tp`, where they divide, the rest everywhere."""
        mesh = mesh_of(self.model)
        if mesh is None:
            return board
        split = mesh.shape.get("tp", 1)
        heads = lambda x, a: a is None and x.shape[-3] % split == 0
        spec = lambda x, a: P(*[None] * (x.ndim - 3), "tp") if split > 1 and heads(x, a) else P()
        leaves, tree = jax.tree.flatten(board.layers)
        placed = [jax.device_put(x, NamedSharding(mesh, spec(x, a))) for x, a in zip(leaves, axes, strict=True)]
        rest = jax.device_put((board.ids, board.memories), NamedSharding(mesh, P()))
        return Board(jax.tree.unflatten(tree, placed), *rest)

    def _with_sources(self, layers: Any) -> Any:
        """Caches with room for what an encoder says of the longest source."""
        cross = lambda node: isinstance(node, CrossKV)

        def widen(node: Any) -> Any:
            if not cross(node):
                return node
            add = self.length - node.k.shape[-2]
            pad = lambda x, axis: jnp.pad(x, [(0, add if i == x.ndim + axis else 0) for i in range(x.ndim)])
            return CrossKV(pad(node.k, -2), pad(node.v, -2), pad(node.segment_ids, -1))

        return jax.tree.map(widen, layers, is_leaf=cross)

    def reset(self) -> None:
        """Begins anew: what a step that failed left behind may be gone."""
        self.board = self.empty()[0]

    # --- one piece of a prompt

    def prefill(self, row: Row, budget: int) -> tuple[int, News | None]:
        """The next piece of a row, of at most `budget` tokens: its length, and what came of it; after the last one, when the row
        has `started`, that is the new token. A piece of length 0 was not run: the budget is too small."""
        left, fresh, request = row.target - row.length, row.length == 0, row.request
        beside = request._wanted.inputs if fresh else {}
        if beside:  # images are read with their whole prompt, which may be the only piece of a step
            lengths, most = (self.sources, len(request.prompt)) if budget == self.pieces[-1] else ([], 0)
        else:
            lengths, most = self.pieces[:1] if fresh and self.encodes else [n for n in self.pieces if n <= budget], left
        if not lengths or (lengths[0] > budget and not beside):
            return 0, None
        size = next((n for n in lengths if n >= most), lengths[-1])
        count = min(most, size)
        given = self.programs.given(1, self._width(row.length, size))
        fill(given, 0, row, count)
        if count == left:
            given = add_bias(given, [(0, row)])
        beside = padded(self.model, beside, np.asarray(request.prompt), size)
        source = self._source(request._wanted.source) if fresh else None
        memory = (np.bool_(request._memory is None), self._memory(request))
        run = self.programs.prefill(
            self.board, given, row.number, self._history(request._all), size, source, memory, fresh, beside
        )
        self.board, news = run()
        row.length += count
        if count == left:
            row.started, request._memory = True, None
        return size, news

    def _width(self, length: int, size: int) -> int:
        """How many pages a piece of `size` tokens is given after `length`."""
        if length == 0:
            return self._most(size)
        return next(w for w in self.piece_widths if w * self.page_size >= length + size)

    def _history(self, known: Sequence[int]) -> np.ndarray:
        history = np.full((1, self.columns), -1, np.int32)
        history[0, : len(known)] = known
        return history

    def _source(self, source: Sequence[int]) -> Any:
        if not source:
            return None
        size = next(n for n in self.sources if n >= len(source))
        ids, mask = np.zeros((1, size), np.int32), np.zeros((1, size), np.int32)
        ids[0, : len(source)], mask[0, : len(source)] = source, 1
        return ids, mask

    def _memory(self, request: Request | None) -> Any:
        if request is not None and request._memory is not None:
            return request._memory
        return jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), self.board.memories)

    def keep_memory(self, row: Row) -> None:
        """What the caller's processors remember of a row that gives way: it goes on from there."""
        if row.started:
            row.request._memory = jax.tree.map(lambda x: np.asarray(x)[row.number][None], self.board.memories)

    # --- one token of every row

    def decode(self, rows: Sequence[Row], others: Sequence[Row]) -> News:
        """New tokens of all rows, of which those of `rows` count; `others` are in the middle of their prompts."""
        longest = max(row.length for row in rows) + 1
        given = self.programs.given(self.rows, next(w for w in self.widths if w * self.page_size >= longest))
        for row in rows:
            fill(given, row.number, row, 1)
        for row in others:  # a ring is written at the next place of a row that is left alone, where it does no harm
            fill(given, row.number, row, 0)
        given = add_bias(given, [(row.number, row) for row in rows])
        self.board, news = self.programs.decode(self.board, given)()
        for row in rows:
            row.length += 1
        return news

    def warm_up(self) -> None:
        """Compiles every program, and runs none."""
        if self.encodes:
            decoder_prompt(self.model, np.zeros((1, 1), np.int32), None, 0, {})
        for width in self.widths:
            self.programs.decode(self.board, self.programs.given(self.rows, width))
        history, memory = self._history(()), (np.bool_(True), self._memory(None))

        def piece(size: int, width: int, source: Any, fresh: bool) -> None:
            given = self.programs.given(1, width)
            self.programs.prefill(self.board, given, 0, history, size, source, memory, fresh, {})

        for size in self.pieces[:1] if self.encodes else self.pieces:
            for length in self.sources if self.encodes else [0]:
                piece(size, self._width(0, size), self._source([0] * length), True)
        for size in self.pieces:
            for width in self.piece_widths:
                if width * self.page_size > size:
                    piece(size, width, None, False)


def fill(given: Given, place: int, row: Row, count: int) -> None:
    """Writes what the programs are told of a row."""
    request = row.request
    given.length[place] = row.length
    given.count[place] = count
    given.prompt_length[place] = len(request.prompt)
    given.moved[place] = request._wanted.moved if row.length else 0
    given.adapter[place] = request._adapter
    pages = row.pages[: given.table.shape[1]]
    given.table[place, : len(pages)] = pages
    given.numbers[place] = request._wanted.numbers
    given.eos[place] = request._wanted.raised
    if request._key is not None:
        given.keys[place] = request._key


def add_bias(given: Given, rows: Sequence[tuple[int, Row]]) -> Given:
    """With what the rules of the rows add to the logits of their next tokens: nothing is sent where none applies."""
    found = {place: row.request._bias() for place, row in rows}
    found = {place: bias for place, bias in found.items() if bias is not None}
    if not found:
        return given
    bias = np.zeros(given.bias.shape, np.float32)
    for place, one in found.items():
        bias[place] = one
        given.biased[place] = True
    return given._replace(bias=bias)


def _doubled(first: int, last: int, factor: int = 2) -> list[int]:
    """`first`, twice that, and so on, up to and with `last`."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    return [*sizes, last]
