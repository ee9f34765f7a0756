"""Attention alone, forward and backward: the compiled kernel, XLA and torch's fused attention, on the same numbers.

    python benchmarks/attention.py [--rounds 9]          # in an environment that has easyfn-kernels

One process holds all three; a round takes one sample of each, the order turning. Printed are the least times in
milliseconds, and the ratio of the kernel's to each of the others'.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

import easyfn as ef
from easyfn.nn.context import Mask

# rows, heads, key heads, tokens, head_dim, causal: a prompt, a long one, examples/tiny and the 8-layer model in training, BERT
SHAPES = [
    (1, 8, 4, 1024, 64, True),
    (1, 8, 4, 2048, 64, True),
    (1, 8, 4, 8192, 64, True),
    (8, 6, 2, 256, 32, True),
    (4, 8, 4, 256, 64, True),
    (8, 12, 12, 128, 64, False),
]


def programs(shape: tuple) -> dict[str, tuple[Callable, Callable]]:
    """By side, a forward and a forward with a backward pass, each run to its end."""
    rows, heads, kv, tokens, dim, causal = shape
    random = np.random.RandomState(0)
    arrays = [random.randn(rows, n, tokens, dim).astype(np.float32) for n in (heads, kv, kv, heads)]
    q, k, v, out = map(jnp.asarray, arrays)

    def attend(q, k, v):
        places, one = jnp.arange(tokens), jnp.ones((rows, tokens), jnp.int32)
        return ef.nn.attend(q, k, v, Mask(places, one, places, one, causal), scale=dim**-0.5)[0]

    sides = {}
    for side, flag in {"kernel": "1", "XLA": "0"}.items():
        os.environ["EASYFN_KERNELS"] = flag
        forward = jax.jit(lambda *x: attend(*x)).lower(q, k, v).compile()
        both = jax.jit(lambda q, k, v, g: jax.vjp(lambda *x: attend(*x), q, k, v)[1](g)).lower(q, k, v, out).compile()
        sides[side] = (
            lambda run=forward: jax.block_until_ready(run(q, k, v)),
            lambda run=both: jax.block_until_ready(run(q, k, v, out)),
        )
    tq, tk, tv, grown = (torch.tensor(x, requires_grad=n < 3) for n, x in enumerate(arrays))
    fused = lambda: torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=causal, enable_gqa=True)

    def torch_forward():
        with torch.no_grad():
            fused()

    sides["torch"] = (torch_forward, lambda: torch.autograd.grad(fused(), (tq, tk, tv), grown))
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    if ef.quant.kernels() is None:
        parser.error("easyfn-kernels is not installed, or off: pip install ./kernels")
    torch.set_num_threads(os.cpu_count() or 1)
    print("| shape | pass | kernel ms | XLA ms | torch ms | of XLA | of torch |\n|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        sides = programs(shape)
        for n, word in enumerate(("forward", "forward and backward")):
            least = dict.fromkeys(sides, float("inf"))
            for turn in range(rounds + 1):  # the first warms up
                names = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
                for side in names:
                    start = time.perf_counter()
                    sides[side][n]()
                    if turn:
                        least[side] = min(least[side], time.perf_counter() - start)
            ms = {side: 1e3 * t for side, t in least.items()}
            times = " | ".join(f"{ms[side]:.1f}" for side in ("kernel", "XLA", "torch"))
            print(
                f"| {shape} | {word} | {times} | {ms['kernel'] / ms['XLA']:.2f} | {ms['kernel'] / ms['torch']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
