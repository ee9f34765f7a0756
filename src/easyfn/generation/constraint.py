"""Structured output: text that matches an expression or a JSON schema, by masking what could not.

A [`Constraint`][easyfn.Constraint] is an automaton over tokens (`constraint_tables.py`): the state of a row says which
classes of tokens may follow. It is a processor with one number of memory for each row, so it runs inside the compiled
loop; its tables are data of that loop, not constants, and their sizes are powers of two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .constraint_regex import bare
from .constraint_schema import pattern_of
from .constraint_tables import Tables, automaton, token_tables
from .state import Logits, State
from .stop import token_texts

_OVER = -1e30  # of what follows the end of a row: below every score of a beam, and no NaN in a softmax


class Place(NamedTuple):
    """Where each row stands."""

    table: jax.Array  # [rows] which constraint; -1: none
    state: jax.Array  # [rows]


class Constraint(eqx.Module):
    """What the text of a row must match, from [`easyfn.regex`][], [`easyfn.json_schema`][] or [`easyfn.choice`][].

    A processor: `ef.generate(model, ids, processors=(constraint,))` for all rows, `processors=([a, b, None],)` for each
    row its own (`None`: free). It works greedily, in sampling, beams, drafts and streams. Tokens that no match begins
    with have probability zero and the others keep their proportions; where the text is complete the end of the row is
    allowed, and where nothing else is left it is forced. A row that reaches `max_new_tokens` first is cut. Options that
    would forbid every token that the constraint allows (`min_new_tokens`, `bad_words_ids`, ...) lose against it.

    On the host, one token at a time: `start()`, `allowed(state)`, `advance(state, token)`.

    ```python
    import easyfn as ef
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(["</s>", *letters])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    constraint = ef.regex("[0-9]+", tokenizer, eos_token_id=0)
    state = constraint.start()
    assert constraint.allowed(state).sum() == 10
    state = constraint.advance(state, tokenizer.token_to_id("7"))
    assert constraint.allowed(state)[0]  # now the row may end
    ```
    """

    classes: Any  # [constraints, vocab] int32: tokens that always lead to the same state; 0 is forbidden, 1 ends a row
    after: (
        Any  # [constraints, states, classes]: the next state, -1: forbidden; 0 is that of a row that ended, 1 the first
    )
    rows: Any = None  # [prompts] int32: which constraint, -1: none; None: the only one

    def init(self, ids: jax.Array, vocab_size: int) -> Place:
        if self.classes.shape[1] > vocab_size:
            raise ValueError(
                f"constraint: the tokenizer has ids up to {self.classes.shape[1] - 1}, and the model {vocab_size} logits; "
                "make the constraint with the model's own tokenizer, or ef.resize_embeddings the model"
            )
        count = ids.shape[0]
        table = jnp.zeros((count,), jnp.int32)
        if self.rows is not None:  # each prompt's beams or answers are next to each other
            table = jnp.repeat(self.rows, count // self.rows.shape[0])
        return Place(table, jnp.ones((count,), jnp.int32))

    def __call__(self, state: State, ids: jax.Array, logits: Logits) -> tuple[Logits, State]:
        table, at = state.memory
        own = jnp.maximum(table, 0)
        newest = jax.lax.dynamic_slice_in_dim(ids, state.length - 1, 1, axis=1)[:, 0]
        after = self.after[own, at, self.classes[own, jnp.maximum(newest, 0)]].astype(jnp.int32)
        at = jnp.where((state.new > 0) & (newest >= 0), jnp.maximum(after, 0), at)
        bound = table >= 0

        open = self.after[own, at] >= 0
        if self.classes.shape[0] == 1:
            allowed = jnp.take(open, self.classes[0], axis=1)
        else:
            allowed = jnp.take_along_axis(open, self.classes[own], axis=1)
        allowed = jnp.pad(allowed, ((0, 0), (0, logits.shape[1] - allowed.shape[1])))  # logits of no token
        kept = jnp.where(allowed | ~bound[:, None], logits, -jnp.inf)
        stuck = ~jnp.any(kept > -jnp.inf, axis=1)  # something else forbade all that is allowed
        level = jnp.where(at == 0, _OVER, 0.0)[:, None]
        kept = jnp.where(allowed & (bound & (stuck | (at == 0)))[:, None], level, kept)
        return kept, state._replace(memory=Place(table, at))

    def start(self) -> int:
        """The state before the first token."""
        return 1

    def allowed(self, state: int) -> np.ndarray:
        """Which tokens may follow: bool, `(vocabulary of the tokenizer,)`."""
        return (np.asarray(self.after)[0, state] >= 0)[np.asarray(self.classes)[0]]

    def advance(self, state: int, token: int) -> int:
        """The state after one more token. Raises `ValueError` for one that is not allowed."""
        classes = np.asarray(self.classes)[0]
        after = int(np.asarray(self.after)[0, state, classes[token]]) if 0 <= token < len(classes) else -1
        if after < 0:
            raise ValueError(
                f"constraint: token {token} is not allowed in state {state}; see constraint.allowed(state)"
            )
        return after

    @property
    def eos(self) -> tuple[int, ...]:
        """The tokens that end a row."""
        return tuple(int(i) for i in np.flatnonzero((np.asarray(self.classes) == 1).any(axis=0)))


def regex(pattern: str, tokenizer: Any, *, eos_token_id: int | Sequence[int] | None = None) -> Constraint:
    """Text that matches `pattern` as a whole, as `re.fullmatch` would.

    - `pattern`: in the syntax of Rust's `regex` crate, which is Python's without look-around and back references.
    - `tokenizer`: of transformers, or a `tokenizers.Tokenizer`; byte-level and sentencepiece vocabularies become the
      bytes they stand for, so characters of several tokens work. Special tokens never match.
    - `eos_token_id`: what ends a row, by default the tokenizer's; the same that `generate` ends rows with.

    **Raises** `ValueError` for a pattern that is invalid, that nothing matches, or that the vocabulary cannot write, and
    if no `eos_token_id` is known; `ImportError` without the extra `structured` (outlines-core).

    ```python
    import jax.numpy as jnp, re, easyfn as ef
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(["</s>", *letters])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    model = ef.testing.tiny(vocab_size=260)
    date = ef.regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", tokenizer, eos_token_id=0)
    out = ef.generate(model, jnp.array([[5, 6, 7]]), max_new_tokens=12, eos_token_id=0, processors=(date,))
    assert re.fullmatch(r"\\d{4}-\\d{2}-\\d{2}", tokenizer.decode(out.new_tokens[0, :10]))
    ```
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f"ef.regex takes a pattern as text, not {type(pattern).__name__}; of a compiled one its .pattern"
        )
    return _constraint(bare(pattern), tokenizer, eos_token_id, f"the pattern {pattern!r}")


def choice(texts: Sequence[str], tokenizer: Any, *, eos_token_id: int | Sequence[int] | None = None) -> Constraint:
    """One of `texts`, with the arguments and errors of [`easyfn.regex`][].

    ```python
    import easyfn as ef
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(["</s>", *letters])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    constraint = ef.choice(["yes", "no"], tokenizer, eos_token_id=0)
    first = constraint.allowed(constraint.start()).nonzero()[0]
    assert {tokenizer.id_to_token(int(i)) for i in first} == {"y", "n"}
    ```
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"ef.choice takes a list of at least one text, not {texts!r}")
    return _constraint("|".join(map(re.escape, texts)), tokenizer, eos_token_id, f"the choice of {list(texts)}")


def json_schema(
    schema: Any,
    tokenizer: Any,
    *,
    eos_token_id: int | Sequence[int] | None = None,
    whitespace: str = "[ ]?",
    max_depth: int = 3,
) -> Constraint:
    """JSON that a schema allows: what is generated always parses and is always valid.

    - `schema`: a JSON schema as a dict or as text, or a pydantic model class. Types, `properties` (in the order of the
      schema; those that are not `required` may be missing), `items`, `prefixItems`, `enum`, `const`, `anyOf`, `oneOf` of
      branches that are apart, `$ref`, lengths, `pattern`, common `format`s, bounds of numbers. Anything else is refused
      by name.
    - `whitespace`: a pattern of what may stand between the parts; unbounded space lets a model write nothing else.
    - `max_depth`: how deep a schema that refers to itself, or says nothing about a value, is unrolled.

    `tokenizer`, `eos_token_id` and the other errors: [`easyfn.regex`][]. Objects hold no properties that the schema does
    not name, unless it names none.

    ```python
    import easyfn as ef
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(["</s>", *letters])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}
    constraint = ef.json_schema(schema, tokenizer, eos_token_id=0)
    state = constraint.start()
    for letter in '{"age":30}':
        state = constraint.advance(state, tokenizer.token_to_id(letter))
    assert constraint.allowed(state).nonzero()[0].tolist() == [0]
    ```
    """
    return _constraint(
        pattern_of(schema, whitespace=whitespace, max_depth=max_depth), tokenizer, eos_token_id, "the schema"
    )


def _constraint(pattern: str, tokenizer: Any, eos_token_id: Any, what: str) -> Constraint:
    machine = automaton(pattern)
    tables = token_tables(machine, *vocabulary(tokenizer, eos_token_id))
    if tables is None:
        raise ValueError(
            f"constraint: no tokens of the vocabulary make a text of {what}; does the tokenizer have its letters as tokens?"
        )
    return placed([tables])


def vocabulary(tokenizer: Any, eos_token_id: Any) -> tuple[dict[int, bytes], tuple[int, ...], int]:
    """What each token writes, those that end a row, and the size of the vocabulary."""
    ends = _ends(tokenizer, eos_token_id)
    texts = token_texts(tokenizer)
    hidden = {*_special(tokenizer), *ends}
    return {i: text for i, text in texts.items() if i not in hidden}, ends, max(*texts, *ends) + 1


def placed(tables: Sequence[Tables], rows: np.ndarray | None = None) -> Constraint:
    """Several tables as one, on the device."""
    count = 1 << (len(tables) - 1).bit_length()
    vocab, states, kinds = map(max, zip(*((len(t.classes), *t.after.shape) for t in tables), strict=True))
    classes = np.zeros((count, vocab), np.int32)
    after = np.full((count, states, kinds), -1, np.result_type(*(t.after for t in tables)))
    for n, table in enumerate(tables):
        classes[n, : len(table.classes)] = table.classes
        after[n, : table.after.shape[0], : table.after.shape[1]] = table.after
    with jax.ensure_compile_time_eval():
        return Constraint(
            jnp.asarray(classes), jnp.asarray(after), None if rows is None else jnp.asarray(rows, jnp.int32)
        )


def _ends(tokenizer: Any, eos_token_id: Any) -> tuple[int, ...]:
    if eos_token_id is None:
        eos_token_id = getattr(tokenizer, "eos_token_id", None)
    if eos_token_id is None:
        raise ValueError(
            f"constraint: the tokenizer, a {type(tokenizer).__name__}, does not say what ends a row; give eos_token_id=, the "
            "one that generate ends rows with"
        )
    ends = tuple(int(i) for i in np.atleast_1d(np.asarray(eos_token_id)))
    if not ends or min(ends) < 0:
        raise ValueError(f"constraint: eos_token_id={eos_token_id!r} is no token")
    return ends


def _special(tokenizer: Any) -> set[int]:
    """The tokens that write nothing of their own."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    added = getattr(backend, "get_added_tokens_decoder", None)
    tokens = added() if added is not None else getattr(tokenizer, "added_tokens_decoder", {})
    found = {i for i, token in tokens.items() if token.special} | set(getattr(tokenizer, "all_special_ids", ()))
    unknown = getattr(getattr(backend, "model", None), "unk_token", None)
    return found if unknown is None else found | {tokenizer.get_vocab()[unknown]}


def constrained(processors: Sequence[Any], eos: tuple[int, ...], prompts: int) -> tuple[Any, ...]:
    """`processors` in which a list of constraints, one for each prompt, has become one; checked against a call."""
    found = [_by_row(p, prompts) if isinstance(p, (list, tuple)) else p for p in processors]
    found = [p for p in found if p is not None]
    for constraint in found:
        if not isinstance(constraint, Constraint) or isinstance(constraint.classes, jax.core.Tracer):
            continue
        if not set(constraint.eos) & set(eos):
            raise ValueError(
                f"generate: the constraint ends a row with eos_token_id={list(constraint.eos)}, and generate with "
                f"{list(eos)}; give both the same one"
            )
    return tuple(found)


def _by_row(constraints: Sequence[Any], prompts: int) -> Constraint | None:
    wrong = [type(c).__name__ for c in constraints if not (c is None or isinstance(c, Constraint))]
    if wrong or len(constraints) != prompts:
        raise ValueError(
            f"generate: a list within processors has a constraint, or None, for each of the {prompts} rows; this one has "
            f"{len(constraints)} entries{f', one of them a {wrong[0]}' if wrong else ''}"
        )
    apart = list({id(c): c for c in constraints if c is not None}.values())
    number = {id(c): n for n, c in enumerate(apart)}
    rows = np.asarray([-1 if c is None else number[id(c)] for c in constraints], np.int32)
    if not apart:
        return None
    return placed([Tables(np.asarray(c.classes)[0], np.asarray(c.after)[0]) for c in apart], rows)
