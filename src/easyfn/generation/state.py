"""Processors: small pure functions that change the logits of the next token, inside the compiled loop.

A processor is called as `(state, ids, logits) -> (logits, state)`:

- `logits`: float32, `(batch, vocab)`.
- `ids`: int32, `(batch, max_length)`: prompt and tokens so far, and -1 wherever there is no token (padding, rows
  that ended, places to come). So nothing ever counts padding.
- `state`: a [`State`][easyfn.State]: how many columns are written, how many the prompt has, and the processor's own
  memory.

Any function is one; a processor with memory has a method `init(ids, vocab_size) -> memory`, whose arrays lead with
the batch axis. Those below are transformers' (`generation/logits_process.py`), one class each; their numbers are
arrays, so that another temperature compiles nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Logits = jax.Array


class State(NamedTuple):
    """What a processor is told, and what it may remember.

    A processor is any function `(state, ids, logits) -> (logits, state)`, with float32 `logits` `(batch, vocab)` and
    int32 `ids` `(batch, max_length)`: prompt and tokens so far, -1 where there is no token. One with memory has a
    method `init(ids, vocab_size) -> memory`, whose arrays lead with the batch axis, and returns
    `state._replace(memory=...)`.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()

    def never_nine(state, ids, logits):
        return logits.at[:, 9].set(-jax.numpy.inf), state

    out = ef.generate(model, jax.numpy.array([[1, 2]]), max_new_tokens=4, processors=[never_nine])
    assert not (out.sequences == 9).any()
    ```
    """

    length: Any  # [] int32: the columns of `ids` that are written
    prompt_length: Any  # of these, the prompt's
    memory: Any = None  # the processor's own, from its `init`

    @property
    def new(self) -> Any:
        """How many tokens were generated so far."""
        return self.length - self.prompt_length


def initial(processors: tuple[Any, ...], ids: jax.Array, vocab_size: int) -> tuple[Any, ...]:
    """The memories of processors before the first token."""
    return tuple(p.init(ids, vocab_size) if hasattr(p, "init") else None for p in processors)


def process(
    processors: tuple[Any, ...],
    memories: tuple[Any, ...],
    ids: jax.Array,
    logits: Logits,
    length: Any,
    prompt_length: Any,
) -> tuple[Logits, tuple[Any, ...]]:
    """All processors in turn."""
    new = []
    for processor, memory in zip(processors, memories, strict=True):
        logits, state = processor(State(length, prompt_length, memory), ids, logits)
        new.append(state.memory)
    return logits, tuple(new)
