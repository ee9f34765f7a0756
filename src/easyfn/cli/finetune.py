"""A LoRA fine-tune of a language model on a text: a plain optax loop, as a user would write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import easyfn as ef


def blocks(tokenizer: Any, text: str, length: int) -> np.ndarray:
    """The text as rows of `length` tokens; what does not fill a row is dropped."""
    ids = np.array(tokenizer.encode(text).ids, np.int32)
    if len(ids) < length:
        raise ValueError(f"the text has {len(ids)} tokens, fewer than one row of {length}")
    return ids[: len(ids) // length * length].reshape(-1, length)


def tune(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    steps: int = 100,
    rank: int = 8,
    length: int = 128,
    batch_size: int = 8,
    learning_rate: float = 3e-3,
    seed: int = 0,
    mesh: Any = None,
    tick: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Any, list[float]]:
    """`model` with an adapter trained on `text`, and the loss of every step. `tick(step, loss)` is called after each."""
    rows = blocks(tokenizer, text, length)
    model = ef.apply_lora(model, "all-linear", rank=rank, alpha=2 * rank, key=jax.random.key(seed))
    adapter, frozen = eqx.partition(model, ef.trainable(model))
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps))

    @eqx.filter_jit(donate="all-except-first")
    def step(frozen: Any, adapter: Any, state: Any, batch: Any) -> Any:
        def loss(adapter: Any) -> Any:
            return ef.compute_loss(eqx.combine(adapter, frozen), batch)[0]

        value, gradients = jax.value_and_grad(loss)(adapter)
        updates, state = optimizer.update(gradients, state, adapter)
        return optax.apply_updates(adapter, updates), state, value

    state, rng, losses = optimizer.init(adapter), np.random.default_rng(seed), []
    for n in range(steps):
        batch = {"input_ids": jnp.asarray(rows[rng.integers(0, len(rows), batch_size)])}
        if mesh is not None:
            batch = ef.shard_batch(batch, mesh)
        adapter, state, value = step(frozen, adapter, state, batch)
        losses.append(float(value))
        tick(n, losses[-1])
    return eqx.combine(adapter, frozen), losses
