"""`stream`: the tokens of `generate`, as they come; `stream_text`: their text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..core.arrays import Host
from ..core.multihost import on_host, unbound
from ..core.rows import by_row
from ..nn.context import Runtime
from .loop import Carry, start, step
from .plan import Data, Plan, prepare

_start = jax.jit(start, static_argnames="plan")


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="carry")
def _step(model: Any, carry: Carry, row_keys: Any, data: Data, plan: Plan) -> Carry:
    return step(model, carry, row_keys, data, plan)


def stream(
    model: Any,
    ids: Int[Array, "batch seq"] | Float[Array, "*source"] | Host,
    *,
    attention_mask: Shaped[Array, "rows keys"] | Host | None = None,
    key: Any = None,
    config: Any = None,
    processors: Sequence[Any] = (),
    cache: Any = None,
    tokenizer: Any = None,
    negative_prompt_ids: Int[Array, "rows seq"] | Host | None = None,
    negative_prompt_attention_mask: Shaped[Array, "rows seq"] | Host | None = None,
    runtime: Runtime = Runtime(),
    adapter_ids: Int[Array, " rows"] | Host | None = None,
    **options: Any,
) -> Iterator[Int[np.ndarray, " rows"]]:
    """The new tokens of [`easyfn.generate`][] one column at a time: int32 arrays of shape `(rows,)`, the same tokens
    for the same arguments. A row that ended yields `pad_token_id`; the stream ends with the last row. Stop early by
    leaving the loop.

    Arguments are checked at the call, not at the first token. Beams are refused: which one is best is known at the end.

    ```python
    import jax.numpy as jnp, easyfn as ef
    model = ef.testing.tiny()
    for tokens in ef.stream(model, jnp.array([[5, 6, 7]]), max_new_tokens=3):
        print(tokens[0])
    ```
    """
    call = {
        "attention_mask": attention_mask,
        "key": key,
        "config": config,
        "processors": processors,
        "runtime": runtime,
        "options": options,
        "cache": cache,
        "tokenizer": tokenizer,
        "negative_prompt_ids": negative_prompt_ids,
        "negative_prompt_attention_mask": negative_prompt_attention_mask,
    }
    columns = _checked(model, ids, adapter_ids, call)
    return (token for token, _ in columns)


def stream_text(
    model: Any, ids: Int[Array, "batch seq"] | Float[Array, "*source"] | Host, tokenizer: Any, **options: Any
) -> Iterator[list[str]]:
    """The new text of every row as it comes, with the options of [`easyfn.stream`][]: lists of one string for each row,
    which together are what `tokenizer.decode` says of a row's new tokens, special ones left out.

    A string is empty while a row's tokens end within a character (one byte of several): what is yielded is never taken
    back, and no character is cut. `tokenizer` is one of transformers or a `tokenizers.Tokenizer`.

    ```python
    import jax.numpy as jnp, easyfn as ef
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    model = ef.testing.tiny(vocab_size=256)
    for texts in ef.stream_text(model, jnp.array([[5, 6, 7]]), tokenizer, max_new_tokens=3):
        print(texts[0], end="")
    ```
    """
    names = ("attention_mask", "key", "config", "cache", "negative_prompt_ids", "negative_prompt_attention_mask")
    call: dict[str, Any] = {name: options.pop(name, None) for name in names}
    call |= {"processors": options.pop("processors", ()), "runtime": options.pop("runtime", Runtime())}
    adapter_ids = options.pop("adapter_ids", None)
    return _texts(_checked(model, ids, adapter_ids, {**call, "options": options, "tokenizer": tokenizer}), tokenizer)


def _checked(model: Any, ids: Any, adapter_ids: Any, call: dict[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Checks at once; runs when asked for the first column."""
    ids, call = unbound(ids), {**call, "attention_mask": unbound(call["attention_mask"])}
    plan, data = prepare(model, ids, **call)
    for name in sorted(plan.outputs):
        raise ValueError(f"stream yields tokens only; for output_{name} use generate")
    if plan.beams:
        raise ValueError("stream: which of num_beams is best is known at the end only; use generate")
    if plan.drafted:
        raise ValueError("stream: drafted tokens come several at a time; for prompt_lookup_num_tokens use generate")
    if adapter_ids is not None:
        model = by_row(model, adapter_ids, data.ids.shape[0])
    return _columns(model, plan, data)


def _columns(model: Any, plan: Plan, data: Data) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each column, and which rows had ended before it."""
    carry, row_keys, _, _ = _start(model, data, plan=plan)
    rest = data._replace(ids=None, mask=None, inputs={}, cache=None, negative=None)  # the prompt is over
    written, before = plan.prompt_length + 1, np.zeros(carry.done.shape, bool)
    while True:
        token, done = on_host(carry.token), on_host(carry.done)
        yield token, before
        if done.all() or written == plan.max_length:
            return
        carry = _step(model, carry, row_keys, rest, plan)
        written, before = written + 1, done


def _texts(columns: Iterator[tuple[np.ndarray, np.ndarray]], tokenizer: Any) -> Iterator[list[str]]:
    rows: list[Text] = []
    for tokens, ended in columns:
        rows = rows or [Text(tokenizer) for _ in tokens]
        yield ["" if end else row.add(int(t)) for row, t, end in zip(rows, tokens, ended, strict=True)]
    if any(rest := [row.rest() for row in rows]):
        yield rest


class Text:
    """The text of tokens that come one by one. Each is decoded beside the one before it, which may change its start."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = 0  # decoding begins here
        self.told = 0  # the text of the tokens before was yielded

    def add(self, token: int) -> str:
        """The new text that is certain after one more token."""
        self.ids.append(token)
        new = self._new()
        if not new or new.endswith("\ufffd"):  # a character that the next token may complete
            return ""
        self.start, self.told = self.told, len(self.ids)
        return new

    def rest(self) -> str:
        """What is left when no more tokens come."""
        return self._new()

    def _new(self) -> str:
        return self._decode(self.ids[self.start :])[len(self._decode(self.ids[self.start : self.told])) :]

    def _decode(self, ids: list[int]) -> str:
        options = {"skip_special_tokens": True}
        if hasattr(self.tokenizer, "convert_tokens_to_string"):
            options["clean_up_tokenization_spaces"] = False  # it would change what was said before
        return self.tokenizer.decode(ids, **options)
