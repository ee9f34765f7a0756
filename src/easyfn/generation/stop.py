"""Stop strings: an automaton over bytes (Aho and Corasick 1975), followed one token at a time inside the loop.

A state is the longest end of the text that begins a stop string. `stop_table(...)[state, token]` is the state after a
token, or `-state - 1` where a stop string ends within it: the moment at which transformers' `StopStringCriteria` stops.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LATEST: list[tuple[Any, dict[int, bytes]]] = []  # the texts of the tokenizers that were used last


def stop_table(tokenizer: Any, strings: Sequence[str], vocab_size: int | None = None) -> np.ndarray:
    """int32 `(states, vocab)`, from a tokenizer of transformers or of `tokenizers`.

    Raises `ValueError` if no token holds the end of any of `strings`: nothing could ever stop.
    """
    texts = token_texts(tokenizer)
    step = _automaton([s.encode() for s in strings])
    states, size = step.shape[0], max(max(texts) + 1, vocab_size or 0)
    length = np.zeros(size, np.int64)
    for i, text in texts.items():
        length[i] = len(text)
    letters = np.zeros((size, max(1, length.max())), np.uint8)
    for i, text in texts.items():
        letters[i, : len(text)] = np.frombuffer(text, np.uint8)
    table = np.repeat(np.arange(states)[:, None], size, axis=1)
    stopped = np.zeros(table.shape, bool)
    for j in range(letters.shape[1]):
        after = step[table, letters[None, :, j]]
        inside = (j < length)[None]
        stopped |= inside & (after < 0)
        table = np.where(inside, np.where(after < 0, -after - 1, after), table)
    unknown = np.ones(size, bool)
    unknown[list(texts)] = False
    table[:, unknown] = 0
    if not stopped.any():
        raise ValueError(f"generate: no token of the tokenizer can end any of stop_strings={list(strings)}")
    return np.where(stopped, -table - 1, table).astype(np.int32)


def _automaton(words: Sequence[bytes]) -> np.ndarray:
    """`(states, 256)`: the state after a byte; `-state - 1` where a word ends."""
    after: list[dict[int, int]] = [{}]
    ends = [False]
    for word in words:
        state = 0
        for byte in word:
            if byte not in after[state]:
                after[state][byte] = len(after)
                after.append({})
                ends.append(False)
            state = after[state][byte]
        ends[state] = True
    table = np.zeros((len(after), 256), np.int64)
    shorter = [0] * len(after)  # the longest proper end of a state that is a state too
    queue = [0]
    for state in queue:
        ends[state] = ends[state] or ends[shorter[state]]
        table[state] = table[shorter[state]] if state else 0
        for byte, child in after[state].items():
            shorter[child] = int(table[state, byte]) if state else 0
            table[state, byte] = child
            queue.append(child)
    return np.where(np.asarray(ends)[table], -table - 1, table)


def follow(table: jax.Array, state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The states after a token, and whether a stop string ends within it."""
    after = table[state, token]
    return jnp.where(after < 0, -after - 1, after), after < 0


def walk(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The state of each row after its prompt `(rows, columns)`, -1 being padding. A stop string in a prompt stops
    nothing, but its end may begin another one."""

    def one(state: jax.Array, token: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where(token < 0, 0, follow(table, state, jnp.maximum(token, 0))[0]), None

    return jax.lax.scan(one, jnp.zeros((ids.shape[0],), jnp.int32), ids.T)[0]


# --- the text of every token


def token_texts(tokenizer: Any) -> dict[int, bytes]:
    """What each token adds to a text, in bytes, whatever marks its tokenizer writes for spaces and bytes."""
    for known, texts in _LATEST:
        if known is tokenizer:
            return texts
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"tokenizer must be one of transformers or a tokenizers.Tokenizer, not {type(tokenizer).__name__}"
        )
    decoder = getattr(backend, "decoder", None)
    kinds = _kinds(decoder)
    byte_of = _byte_level() if "ByteLevel" in kinds and "ByteFallback" not in kinds else None
    prefix = _tokens(tokenizer, "abcdef")
    shown = _text(tokenizer, decoder, prefix)
    before = "abcdef" if "abcdef" in shown else shown  # of a vocabulary that cannot spell it

    def text(token: str) -> bytes:
        if byte_of is not None and all(letter in byte_of for letter in token):
            return bytes(byte_of[letter] for letter in token)
        if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        # Decoded after other text: a first token may lose its space.
        whole = _text(tokenizer, decoder, [*prefix, token])
        return whole[whole.index(before) + len(before) :].encode()

    vocab = tokenizer.get_vocab()
    texts = {i: text(token) for token, i in vocab.items()}
    _LATEST[:] = [*_LATEST[-3:], (tokenizer, texts)]
    return texts


def _tokens(tokenizer: Any, text: str) -> list[str]:
    encode = getattr(tokenizer, "tokenize", None)
    return encode(text) if encode is not None else tokenizer.encode(text, add_special_tokens=False).tokens


def _text(tokenizer: Any, decoder: Any, tokens: list[str]) -> str:
    join = getattr(tokenizer, "convert_tokens_to_string", None)
    if join is not None:
        return join(tokens)
    return decoder.decode(tokens) if decoder is not None else " ".join(tokens)


def _kinds(decoder: Any) -> set[str]:
    """The types that a decoder of `tokenizers` is made of."""
    if decoder is None:
        return set()
    kinds = {type(decoder).__name__}
    try:
        state = json.loads(decoder.__getstate__())
    except (AttributeError, TypeError, ValueError):
        return kinds

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            kinds.add(str(part.get("type")))
        for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            collect(value)

    collect(state)
    return kinds


def _byte_level() -> dict[str, int]:
    """GPT-2's printable letter for every byte, the other way round."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}
