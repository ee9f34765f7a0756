"""From a regular expression and a vocabulary to tables that a compiled loop follows.

Two steps. `outlines_core` makes the automaton of bytes of an expression (asked about the 256 bytes, never about the
tokens: its token index of a large vocabulary is gigabytes of Python dicts). A token is then the composition of its bytes:
a function from state to state. Most tokens are the same function as some other one, so functions are composed once
for each distinct (function, byte) and tokens keep the number of theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LARGEST = 2**30  # bytes of one table


class Automaton(NamedTuple):
    """Of bytes. Nothing leads out of state `len(final)`, and no state but this one is without a way to an end."""

    after: np.ndarray  # [states + 1, kinds of bytes] the state after a byte
    kinds: np.ndarray  # [256] bytes of one kind lead to the same states
    start: int
    final: np.ndarray  # [states] bool


class Tables(NamedTuple):
    """Of tokens. State 0 is that of a row that ended, 1 the first; -1 stands for what is forbidden."""

    classes: np.ndarray  # [vocab] int32: tokens of a class lead to the same states; 0 is forbidden, 1 ends a row
    after: np.ndarray  # [states, classes] int16, or int32 where there are more states


@functools.lru_cache(maxsize=64)
def automaton(pattern: str) -> Automaton:
    """The automaton of the texts that match `pattern` as a whole; the pattern matches no NUL (`bare`)."""
    # An expression prefers its alternatives in order and stops at the first that matches: in `a|ab` at "a". With
    # something to come after it, none of them is dropped. And the library also works out the matches that begin later in
    # a text, which takes minutes for nested objects; with something rare before it, none does.
    start, edges = _edges(rf"\x00(?:{pattern})\x00")
    number = {state: n for n, state in enumerate(edges)}
    dead = len(number)
    after = np.full((dead + 1, 256), dead, np.int64)
    for state, follow in edges.items():
        for byte, target in follow.items():
            after[number[state], byte] = number.get(target, dead)
    first = after[number[start], 0]
    after[number[start], 0] = dead
    final = after[:dead, 0] != dead
    after[:, 0] = dead
    live = _leading_to(after[:dead], final)
    after = np.where(np.append(live, False)[after], after, dead)
    columns, kinds = np.unique(after, axis=1, return_inverse=True)
    return Automaton(columns, kinds.reshape(-1), int(first), final)


def _edges(pattern: str) -> tuple[int, dict[int, dict[int, int]]]:
    """The first state, and for each state the ones after a byte."""
    try:
        from outlines_core import Index, Vocabulary
    except ImportError as error:
        raise ImportError(
            "structured output needs outlines-core, which makes automata of expressions: pip install 'easyfn[structured]'"
        ) from error
    end = 256  # the library's own edge at the states that match
    try:
        index = Index(pattern, Vocabulary(end, {bytes([byte]): [byte] for byte in range(256)}))
    except ValueError as error:
        raise ValueError(_refused(pattern, error)) from error
    edges = {state: dict(follow) for state, follow in index.get_transitions().items()}
    for follow in edges.values():
        follow.pop(end, None)
    return index.get_initial_state(), edges


def _refused(pattern: str, error: ValueError) -> str:
    pattern = pattern[len(r"\x00(?:") : -len(r")\x00")]
    shown = pattern if len(pattern) < 200 else f"{pattern[:200]}... ({len(pattern)} letters)"
    if "no transitions" in str(error):
        return f"regex: no text matches the pattern {shown!r}: a part of it contradicts itself"
    return (
        f"regex: cannot make an automaton of the pattern {shown!r}: it is invalid, or not regular. The syntax is that of "
        "Rust's regex crate: no look-around, no back references, no \\b, and ^ and $ at the two ends only"
    )


def _leading_to(after: np.ndarray, final: np.ndarray) -> np.ndarray:
    """The states `(states,)` from which a final one can be reached; targets beyond them and below 0 are dead."""
    states = len(final)
    source = np.repeat(np.arange(states), after.shape[1])
    target = after.reshape(-1)
    good = (target >= 0) & (target < states)
    pairs = np.unique(source[good] * states + target[good])
    source, target = pairs // states, pairs % states
    live = final.copy()
    while True:
        grown = live.copy()
        grown[source[live[target]]] = True
        if (grown == live).all():
            return live
        live = grown


def token_tables(machine: Automaton, texts: Mapping[int, bytes], ends: tuple[int, ...], vocab: int) -> Tables | None:
    """The tables of a vocabulary of which `texts` says what the tokens write, and `ends` which ones end a row; `None`
    if its tokens can write no text of the automaton."""
    owner, functions = _functions(machine, texts, vocab)
    states = len(machine.final)
    size = 4 * (states + 1) * (len(functions) + 2)
    if size > LARGEST:
        raise ValueError(
            f"the constraint has {states} states and {len(functions)} kinds of tokens, a table of {size / 2**30:.1f} GiB; "
            "bound less: of lengths and counts ({0,1000}, maxLength, maxItems) every number is a state of its own"
        )
    after = functions.T
    # Where tokens do not cover all bytes, some states lead nowhere.
    live = _leading_to(after, machine.final)
    if not live[machine.start]:
        return None
    after = np.where(np.append(live, False)[after], after, -1)
    # Numbered anew: 0 for the end, 1 for the start, and none for states that no token leads to.
    reached = _reached(after, machine.start)
    order = np.concatenate([[machine.start], np.flatnonzero(reached & (np.arange(states) != machine.start))])
    number = np.full(states + 1, -1)
    number[order] = 1 + np.arange(len(order))
    columns, own = np.unique(number[after[order]], axis=1, return_inverse=True)
    own = own.reshape(-1)
    forbidden = (columns < 0).all(axis=0)
    place = np.where(forbidden, 0, 1 + np.cumsum(~forbidden))  # classes 0 and 1 are those of every table
    classes = place[own[owner]]
    classes[list(ends)] = 1
    kind = np.int16 if len(order) < 2**15 - 1 else np.int32
    table = np.full((_round(len(order) + 1), _round(2 + int((~forbidden).sum()))), -1, kind)
    table[1 : len(order) + 1, place[~forbidden]] = columns[:, ~forbidden]
    table[1 : len(order) + 1, 1] = np.where(machine.final[order], 0, -1)
    table[0, 1] = 0
    return Tables(classes.astype(np.int32), table)


def _functions(machine: Automaton, texts: Mapping[int, bytes], vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """For each token which function it is, and the functions `(functions, states)`, the last of them leading nowhere."""
    after, dead = machine.after, len(machine.final)
    ids = np.fromiter(texts, np.int64, len(texts))
    length = np.fromiter(map(len, texts.values()), np.int64, len(texts))
    letters = np.zeros((len(ids), length.max(initial=1)), np.uint8)
    for row, text in zip(letters, texts.values(), strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    owner = np.full(vocab, -1)
    found: list[np.ndarray] = []
    count = 0
    current = np.arange(dead)[None]  # the functions of the bytes so far; at first the one that changes nothing
    mine = np.zeros(len(ids), np.int64)
    ids, letters, length = ids[length > 0], letters[length > 0], length[length > 0]
    mine = mine[: len(ids)]
    for place in range(letters.shape[1]):
        pairs, own = np.unique(mine * 256 + machine.kinds[letters[:, place]], return_inverse=True)
        current, merged = _distinct(after[current[pairs // 256], (pairs % 256)[:, None]])
        mine = merged[own]
        going = (current != dead).any(axis=1)[mine]
        done = going & (length == place + 1)
        owner[ids[done]] = count + mine[done]
        found.append(current)
        count += len(current)
        going &= length > place + 1
        ids, letters, length, mine = ids[going], letters[going], length[going], mine[going]
        if not len(ids):
            break
    owner[owner < 0] = count
    used, owner = np.unique(np.append(owner, count), return_inverse=True)
    return owner[:-1], np.concatenate([*found, np.full((1, dead), dead)])[used]


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and which of them each row is."""
    rows = np.ascontiguousarray(rows)
    _, first, own = np.unique(rows.view(f"V{rows.strides[0]}").reshape(-1), return_index=True, return_inverse=True)
    return rows[first], own.reshape(-1)


def _reached(after: np.ndarray, start: int) -> np.ndarray:
    """The states `(states,)` that some token leads to, from `start` on."""
    seen = np.zeros(len(after), bool)
    new = np.asarray([start])
    while len(new):
        seen[new] = True
        new = np.unique(after[new])
        new = new[new >= 0]
        new = new[~seen[new]]
    return seen


def _round(count: int) -> int:
    """Sizes are powers of two, and none is small: few of them, so few programs."""
    return max(128, 1 << (count - 1).bit_length())
