"""The compiled programs of an engine: pieces of prompts (`prefill`), one more token of every row (`decode`).

What they share lies on the device and is given from one to the next (`Board`). Shapes are few: a piece of a prompt has
one of some lengths, and attention reads one of some numbers of pages; each pair is compiled once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.rows import by_row
from ..forward.forward import forward
from ..generation.prompt import mask_name
from ..generation.state import initial
from ..inputs.statement import accepted
from ..nn.cache.cache import Cache
from ..nn.context import Runtime
from ..nn.heads import head_logits
from .sampler import EOS, INDEX, NUMBERS, Asked, Scores, next_tokens, scores_of

_READ = 64  # tokens of a prompt whose logits are there at once


class Board(NamedTuple):
    """What the device keeps of all rows."""

    layers: Any  # caches: pages, and what is kept by row
    ids: jax.Array  # [rows, columns] the tokens of each row so far
    memories: tuple[Any, ...]  # of the caller's processors, [rows, ...]


class News(NamedTuple):
    """What a program found out for the host."""

    tokens: jax.Array  # [rows]
    scores: Scores
    prompt: Scores | None = None  # of a piece: what its tokens say of those that follow them


class Given(NamedTuple):
    """What the host says of some rows at a step; numpy arrays."""

    length: Any  # [rows] slots that are written
    count: Any  # [rows] tokens to run; 0: the row is left alone
    prompt_length: Any  # [rows]
    moved: Any  # [rows] what is added to the length for the position of the next token
    adapter: Any  # [rows], -1 = none
    biased: Any  # [rows] bool
    table: Any  # [rows, pages]
    numbers: Any  # [rows, NUMBERS]
    eos: Any  # [rows, EOS]
    keys: Any  # [rows, ...] uint32
    bias: Any  # [rows, vocab]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the programs of an engine are made for."""

    vocab_size: int
    page_size: int
    impl: str  # of the keys
    adapters: bool
    encodes: bool
    batch_axes: tuple[int | None, ...]
    processors: tuple[Any, ...]
    runtime: Runtime


class Programs:
    """Compiles what is asked for the first time, and runs it."""

    def __init__(self, model: Any, facts: Facts, first: Any) -> None:
        """`first`: the caches of one row that has nothing."""
        self.leaves, self.tree = jax.tree.flatten(model)
        self.facts = facts
        self.first = first
        self.no_bias: dict[int, Any] = {}
        self.compiled: dict[Any, Any] = {}

    @property
    def compiles(self) -> int:
        return len(self.compiled)

    def given(self, rows: int, width: int) -> Given:
        """Of rows that are left alone."""
        if rows not in self.no_bias:
            self.no_bias[rows] = jax.device_put(np.zeros((rows, self.facts.vocab_size), np.float32))
        zeros = lambda: np.zeros((rows,), np.int32)
        keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=self.facts.impl)))
        return Given(
            length=zeros(),
            count=zeros(),
            prompt_length=zeros(),
            moved=zeros(),
            adapter=np.full((rows,), -1, np.int32),
            biased=np.zeros((rows,), bool),
            table=np.full((rows, width), -1, np.int32),
            numbers=np.tile(np.asarray(list(NUMBERS.values()), np.float32), (rows, 1)),
            eos=np.full((rows, EOS), -1, np.int32),
            keys=np.zeros((rows, *keys.shape), np.uint32),
            bias=self.no_bias[rows],
        )

    def decode(self, board: Board, given: Given) -> Any:
        """One more token of the rows with a count: a call that returns `(board, News)`."""
        return self._ready(("decode", given.table.shape), self._decode, board, given)

    def prefill(
        self,
        board: Board,
        given: Given,
        row: int,
        history: np.ndarray,
        length: int,
        source: Any,
        memory: Any,
        fresh: bool,
        beside: Mapping[str, np.ndarray],
    ) -> Any:
        """The next `given.count[0]` tokens of a row, in a piece of `length`: a call that returns `(board, News)`, of the
        token that follows. A row that has nothing yet is `fresh`.

        `history` `(1, columns)` are all tokens of the row; `source`, of a row that begins, what an encoder reads: `(ids,
        mask)`, both `(1, n)`; `memory` `(whether it is new, of each processor)`; `beside` what the model reads with these
        tokens, images.
        """
        shapes = None if source is None else source[0].shape
        kinds = tuple((n, x.shape, x.dtype.name) for n, x in sorted(beside.items()))
        name = ("prefill", length, fresh, shapes, None if fresh else given.table.shape, kinds)

        def program(leaves: Any, board: Board, *arguments: Any) -> Any:
            return self._prefill(leaves, board, *arguments, size=length, fresh=fresh)

        return self._ready(name, program, board, given, np.int32(row), history, source, memory, dict(beside))

    def _ready(self, name: Any, program: Any, *arguments: Any) -> Any:
        """The compiled program, bound to its arguments: whoever only wants it compiled does not call it."""
        if name not in self.compiled:
            board = jax.tree.map(lambda x: x.sharding, arguments[0])  # it comes back to where it was
            jitted = jax.jit(program, donate_argnums=1, out_shardings=(board, None))
            lowered = jitted.lower(self.leaves, *arguments)
            self.compiled[name] = lowered.compile()
        return functools.partial(self.compiled[name], self.leaves, *arguments)

    # --- what is compiled

    def _decode(self, leaves: Any, board: Board, given: Given) -> tuple[Board, News]:
        length, active = given.length, given.count > 0
        token = jnp.take_along_axis(board.ids, length[:, None], axis=1)
        mask = active[:, None]
        logits, layers, _ = self._forward(leaves, jnp.maximum(token, 0), mask, board.layers, given, fresh=False)
        news, memories = self._choose(logits[:, 0], given, board.ids, length + 1, board.memories)
        rows = jnp.arange(active.shape[0])
        ids = board.ids.at[rows, jnp.where(active, length + 1, board.ids.shape[1])].set(news.tokens, mode="drop")
        return Board(layers, ids, _where(active, memories, board.memories)), news

    def _prefill(
        self,
        leaves: Any,
        board: Board,
        given: Given,
        row: jax.Array,
        history: jax.Array,
        source: Any,
        memory: Any,
        beside: dict[str, Any],
        *,
        size: int,
        fresh: bool,
    ) -> tuple[Board, News]:
        start, count = given.length[0], given.count[0]
        tokens = jnp.maximum(lax.dynamic_slice_in_dim(history, start, size, axis=1), 0)
        mask = jnp.arange(size)[None] < count
        parts, tree = jax.tree.flatten(board.layers)
        axes = self.facts.batch_axes
        if fresh:
            first = jax.tree.leaves(self.first)
            own = [x if a is None else f for x, f, a in zip(parts, first, axes, strict=True)]
        else:
            cut = lambda x, a: lax.dynamic_slice_in_dim(x, row, 1, axis=a)
            own = [x if a is None else cut(x, a) for x, a in zip(parts, axes, strict=True)]
        layers = jax.tree.unflatten(tree, own)
        follow = lax.dynamic_slice_in_dim(history, start + 1, size, axis=1)
        logits, layers, read = self._forward(
            leaves, tokens, mask, layers, given, fresh=fresh, source=source, follow=follow, **beside
        )
        put = lambda x, new, a: lax.dynamic_update_slice_in_dim(x, _fit(new, x, a).astype(x.dtype), row, axis=a)
        new = [n if a is None else put(x, n, a) for x, n, a in zip(parts, jax.tree.leaves(layers), axes, strict=True)]
        is_new, kept = memory
        vocab = self.facts.vocab_size
        begun = begin(self.facts.processors, history, vocab)
        kept = jax.tree.map(lambda b, k: jnp.where(is_new, b, k), begun, kept)
        news, kept = self._choose(logits[:, 0], given, history, given.length + given.count, kept)
        write = lambda x, k: lax.dynamic_update_slice_in_dim(x, k, row, axis=0)
        ids = history.at[0, start + count].set(news.tokens[0], mode="drop")
        board = Board(
            jax.tree.unflatten(tree, new),
            lax.dynamic_update_slice_in_dim(board.ids, ids, row, axis=0),
            jax.tree.map(write, board.memories, kept),
        )
        return board, news._replace(prompt=read)

    def _forward(
        self,
        leaves: Any,
        tokens: jax.Array,
        mask: jax.Array,
        layers: Any,
        given: Given,
        *,
        fresh: bool,
        source: Any = None,
        follow: Any = None,
        **beside: Any,
    ) -> tuple[jax.Array, Any, Scores | None]:
        """Logits `(rows, 1, vocab)` of one column, the caches, and of a piece of a prompt the scores of the tokens that
        `follow` each of its own."""
        model = jax.tree.unflatten(self.tree, leaves)
        if self.facts.adapters:
            model = by_row(model, given.adapter, tokens.shape[0])
        table = given.table
        slots = max(table.shape[1] * self.facts.page_size, tokens.shape[1])
        before = jnp.arange(slots)[None] < given.length[:, None]
        places = given.length + given.moved
        cache = Cache(layers, before.astype(jnp.int32), places, given.length, self.facts.batch_axes, table)
        second = self.facts.encodes
        inputs: dict[str, Any] = {"decoder_input_ids" if second else "input_ids": tokens, **beside}
        inputs[mask_name(model)] = mask.astype(jnp.int32)
        if source is not None:
            inputs |= {"input_ids": source[0], "attention_mask": source[1]}
        if "logits_to_keep" in accepted(model):
            inputs["logits_to_keep"] = 1
        out = forward(model, **inputs, cache=cache, fresh=fresh, runtime=self.facts.runtime)
        if follow is None:
            return out.logits, out.cache.layers, None
        # Of a piece with padding at its end the last token's: the head runs on that one alone.
        hidden = lax.dynamic_slice_in_dim(out.last_hidden_state, given.count[0] - 1, 1, axis=1)
        read = None if second else _read(model, out.last_hidden_state[0], follow[0], given.numbers)
        return head_logits(model, hidden), out.cache.layers, read

    def _choose(
        self, logits: jax.Array, given: Given, ids: jax.Array, length: jax.Array, memories: tuple[Any, ...]
    ) -> tuple[News, tuple[Any, ...]]:
        keys = jax.random.wrap_key_data(given.keys, impl=self.facts.impl)
        asked = Asked(given.numbers, given.eos, keys, given.bias, given.biased)
        processors = self.facts.processors
        tokens, memories = next_tokens(logits, asked, ids, length, given.prompt_length, processors, memories)
        return News(tokens, scores_of(logits, tokens, given.numbers[:, INDEX["logprobs"]] > 0)), memories


def _read(model: Any, hidden: jax.Array, follow: jax.Array, numbers: jax.Array) -> Scores:
    """Scores of the tokens that `follow` `(size,)`, from hidden states `(size, embed)`, a few at a time: all logits of a long
    piece would be the largest array of the step. Nothing is computed where they are not asked for."""
    size, asked = len(follow), numbers[:, INDEX["prompt_logprobs"]] > 0
    few = min(_READ, size)
    cut = lambda x: jnp.pad(x, [(0, -size % few), *[(0, 0)] * (x.ndim - 1)]).reshape(-1, few, *x.shape[1:])

    def part(both: tuple[jax.Array, jax.Array]) -> Scores:
        return scores_of(head_logits(model, both[0][None])[0], jnp.maximum(both[1], 0), jnp.asarray(True))

    parts = (cut(hidden), cut(follow))
    whole = lambda x: x.reshape(-1, *x.shape[2:])[:size]
    make = lambda parts: jax.tree.map(whole, lax.map(part, parts))
    shapes = jax.eval_shape(make, parts)
    nothing = lambda parts: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.cond(jnp.any(asked), make, nothing, parts)


def begin(processors: tuple[Any, ...], ids: jax.Array, vocab_size: int) -> tuple[Any, ...]:
    """The memories of processors of one row: each row is a batch of its own, hence two leading axes."""
    return jax.tree.map(lambda x: x[None], initial(processors, ids, vocab_size))


def _where(active: jax.Array, new: Any, old: Any) -> Any:
    pick = lambda n, o: jnp.where(active.reshape(-1, *(1,) * (n.ndim - 1)), n, o)
    return jax.tree.map(pick, new, old)


def _fit(new: jax.Array, whole: jax.Array, axis: int) -> jax.Array:
    """A row's new part as long as the room for it, with zeros: what an encoder said of a shorter source."""
    return jnp.pad(
        new, [(0, 0 if i == axis else w - n) for i, (n, w) in enumerate(zip(new.shape, whole.shape, strict=True))]
    )
