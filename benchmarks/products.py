"""One product `x @ w.T` in each weight format beside plain float32, interleaved; ratios of the fastest of some rounds.

    python benchmarks/products.py [--out 4096] [--columns 4096] [--rows 1 8 256] [--rounds 25]

llama.cpp's blocks (`Q4_K`, ...) are of random bytes: a product takes as long whatever they are.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef
from easyfn.core.weight import dot
from easyfn.quant.kquant import BLOCKS, from_blocks

METHODS = ["8bit", "int4", "nf4", "a8q"]


def weights(out: int, columns: int) -> dict:
    random = np.random.RandomState(0)
    layer = ef.nn.Linear(columns, out)
    plain = jnp.asarray(random.randn(out, columns), jnp.float32)
    layer = ef.with_params(layer, {"weight": plain})
    found = {"float32": plain} | {m: ef.quantize(layer, m).weight for m in METHODS}
    for kind, block in BLOCKS.items():
        size = sum(count for _, count in block.parts)
        w = from_blocks(random.randint(0, 256, (out, columns // block.entries * size)).astype(np.uint8), kind)
        scale = random.rand(*w.scale.shape).astype(np.float16)
        found[kind] = jax.tree.map(lambda x, s=scale: jnp.asarray(s if x.dtype == s.dtype else x), w)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 256])
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    formats, product = weights(args.out, args.columns), jax.jit(dot)
    best: dict[str, list[float]] = {name: [] for name in formats}
    for rows in args.rows:
        x = jax.random.normal(jax.random.key(rows), (rows, args.columns))
        taken = dict.fromkeys(formats, float("inf"))
        for _ in range(args.rounds + 1):  # the first compiles
            for name, w in formats.items():
                start = time.perf_counter()
                jax.block_until_ready(product(w, x))
                taken[name] = min(taken[name], time.perf_counter() - start)
        for name in formats:
            best[name].append(taken[name] / taken["float32"])
    print(f"| format | {' | '.join(f'{rows} rows' for rows in args.rows)} |\n|---|{'---|' * len(args.rows)}")
    for name, ratios in best.items():
        print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")


if __name__ == "__main__":
    main()
