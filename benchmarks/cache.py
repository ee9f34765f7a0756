"""What the dtype of a cache costs: accuracy on the trained model of this repository, memory, and the time of a token.

    python benchmarks/cache.py            # accuracy and memory: minutes on two cores
    python benchmarks/cache.py --speed    # and the time of a token of the 8-layer model, long caches, interleaved

Held-out text is read token by token (teacher forcing), every prediction made from the cache alone. Judged by the
divergence from the predictions with a float32 cache, in thousandths of a nat per token, as weight formats are.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

TINY = Path(__file__).parent.parent / "examples" / "tiny"
DTYPES = ("float32", "bfloat16", "int8")


@jax.jit
def read(model: Any, text: jax.Array, cache: Any) -> jax.Array:
    """Log probabilities `(rows, seq, vocab)` of what follows each token, one decoding step each."""

    def step(cache: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        logits, cache = ef.decode_step(model, token, cache)
        return cache, jax.nn.log_softmax(logits.astype(jnp.float32))

    return jnp.moveaxis(jax.lax.scan(step, cache, text.T)[1], 0, 1)


def judge(model: Any, text: jax.Array, dtypes: tuple[str, ...] = DTYPES) -> dict[str, tuple[float, float, float]]:
    """Of each dtype: the cache's bytes over float32's, the loss, the divergence from the first dtype in nats."""
    found, exact, size = {}, None, None
    for dtype in dtypes:
        cache = ef.init_cache(model, *text.shape, dtype=dtype)
        scores, held = read(model, text, cache), ef.num_bytes(cache.layers)
        exact, size = (scores, held) if exact is None else (exact, size)
        loss = -jnp.mean(jnp.take_along_axis(scores[:, :-1], text[:, 1:, None], axis=-1))
        divergence = jnp.mean(jnp.sum(jnp.exp(exact) * (exact - scores), axis=-1))
        found[dtype] = (held / size, float(loss), float(divergence))
    return found


def speed(rows: int, slots: int, rounds: int = 7, tokens: int = 16) -> dict[str, float]:
    """Seconds of a token with a full cache of each dtype, medians of interleaved rounds."""
    config = ef.models.LlamaConfig(
        vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=slots,
    )  # fmt: skip
    model = ef.init(config, key=jax.random.key(0))

    @jax.jit
    def run(model: Any, cache: Any) -> Any:
        def step(_: Any, state: Any) -> Any:
            logits, cache = ef.decode_step(model, *state)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, tokens, step, (jnp.zeros((rows,), jnp.int32), cache))

    caches = {dtype: ef.init_cache(model, rows, slots, dtype=dtype) for dtype in DTYPES}
    samples: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for n in range(rounds + 1):
        for dtype in DTYPES if n % 2 else DTYPES[::-1]:
            began = time.perf_counter()
            jax.block_until_ready(run(model, caches[dtype]))
            samples[dtype].append((time.perf_counter() - began) / tokens)
    return {dtype: statistics.median(times[1:]) for dtype, times in samples.items()}


def main() -> None:
    model = ef.load(TINY, dtype=jnp.float32, progress=False)
    text = jnp.asarray(np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32).reshape(-1, 256)[:32])
    print(f"{datetime.date.today()}, jax {importlib.metadata.version('jax')}. {text.size} tokens.\n")
    print("| cache | bytes of float32's | loss | divergence, 1e-3 nat |\n|---|---|---|---|")
    for dtype, (size, loss, divergence) in judge(model, text).items():
        print(f"| {dtype} | {size:.3f} | {loss:.4f} | {1e3 * divergence:.4f} |", flush=True)
    if "--speed" in sys.argv:
        print("\n| rows, slots | float32 ms | bfloat16 | int8 | int8 of float32 |\n|---|---|---|---|---|")
        for rows, slots in ((1, 512), (1, 4096), (8, 512), (8, 2048)):
            took = [1e3 * t for t in speed(rows, slots).values()]
            print(
                f"| {rows}, {slots} | {took[0]:.2f} | {took[1]:.2f} | {took[2]:.2f} | {took[2] / took[0]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
