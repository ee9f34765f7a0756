"""What a model costs outside of `jax.jit`: the first look, another length, a gradient; in processor time and programs.

    python benchmarks/eager.py                           # the easyfn that is installed
    PYTHONPATH=OTHER/src python benchmarks/eager.py      # that of another checkout

One process, each line once: take turns between two checkouts and compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import easyfn as ef

CONFIG = ef.models.LlamaConfig(
    vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=2048,
)  # fmt: skip


def main() -> None:
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    model = jax.block_until_ready(ef.init(CONFIG, key=jax.random.key(0)))
    ids, longer = jnp.ones((1, 64), int), jnp.ones((1, 80), int)
    jitted = jax.jit(lambda m, x: ef.forward(m, x).logits)
    slope = jax.grad(lambda m: ef.compute_loss(m, {"input_ids": ids, "labels": ids})[0])

    def timed(name: str, run: Callable[[], Any]) -> None:
        compiled.clear()
        start = time.process_time()
        jax.block_until_ready(run())
        print(f"| {name} | {time.process_time() - start:.2f} | {len(compiled)} |", flush=True)

    print("| without jit unless it says so | processor s | programs |\n|---|---|---|")
    timed("first pass", lambda: ef.forward(model, ids).logits)
    timed("second pass", lambda: ef.forward(model, ids).logits)
    timed("another length", lambda: ef.forward(model, longer).logits)
    timed("first pass, jitted", lambda: jitted(model, ids))
    timed("second pass, jitted", lambda: jitted(model, ids))
    timed("first gradient", lambda: slope(model))
    timed("second gradient", lambda: slope(model))


if __name__ == "__main__":
    main()
