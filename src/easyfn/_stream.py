"""`stream`: the tokens of `generate`, as they come."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ._generate import Carry, Plan, prepare, start, step
from .nn.context import Runtime

_start = jax.jit(start, static_argnames="plan")


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="carry")
def _step(model: Any, carry: Carry, row_keys: Any, numbers: Sequence[Any], plan: Plan) -> Carry:
    return step(model, carry, row_keys, numbers, plan)


def stream(
    model: Any,
    ids: Any,
    *,
    attention_mask: Any = None,
    key: Any = None,
    config: Any = None,
    processors: Sequence[Any] = (),
    runtime: Runtime = Runtime(),
    **options: Any,
) -> Iterator[np.ndarray]:
    """The new tokens of [`easyfn.generate`][] one column at a time: int32 arrays of shape `(rows,)`, the same tokens
    for the same arguments. A row that ended yields `pad_token_id`; the stream ends with the last row. Stop early by
    leaving the loop.

    Arguments are checked at the call, not at the first token.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    model = ef.init(ef.models.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2), key=jax.random.key(0))
    for tokens in ef.stream(model, jnp.array([[5, 6, 7]]), max_new_tokens=3):
        print(tokens[0])
    ```
    """
    for name in ("output_scores", "output_logits"):
        if options.get(name):
            raise ValueError(f"stream yields tokens only; for {name} use generate")
    plan, data = prepare(model, ids, attention_mask, key, config, processors, False, runtime, options)
    return _tokens(model, plan, data)


def _tokens(model: Any, plan: Plan, data: tuple[Any, ...]) -> Iterator[np.ndarray]:
    numbers = data[3]
    carry, row_keys, _ = _start(model, *data, plan=plan)
    written = plan.prompt_length + 1
    while True:
        token, done = np.asarray(carry.token), bool(np.all(np.asarray(carry.done)))
        yield token
        if done or written == plan.max_length:
            return
        carry = _step(model, carry, row_keys, numbers, plan)
        written += 1
