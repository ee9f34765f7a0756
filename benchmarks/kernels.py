"""Decoding one row with packed weights, by the compiled kernels and without them, beside our own float32: ratios.

    python benchmarks/kernels.py [int4 nf4 8bit Q8_0 Q4_K Q6_K ...] [--rounds 9] [--tokens 16] [--head] [--rows 1] [--cores 1]

One process holds all programs; a round takes one sample of each, the order turning. A sample is a loop of `decode_step`
inside one program. Printed are medians of ratios within a round: of the processor time of the process, which neighbours on a
shared machine disturb less, and of the wall clock. `--head` quantizes the head too. llama.cpp's blocks are of random bytes:
a product takes as long whatever they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from compare import SHAPE

import easyfn as ef
from easyfn.quant.kquant import BLOCKS, from_blocks

LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


def blocks(w: jax.Array, kind: str):
    """A weight of the shape of `w` in blocks of random bytes, its scales small."""
    random = np.random.RandomState(0)
    if kind == "Q8_0":
        codes = random.randint(-128, 128, w.shape).astype(np.int8)
        return ef.quant.grouped(codes, np.full((w.shape[0], w.shape[1] // 32), 1e-4, np.float16), bits=8, name="q8_0")
    size = sum(count for _, count in BLOCKS[kind].parts)
    raw = random.randint(0, 256, (w.shape[0], w.shape[1] // BLOCKS[kind].entries * size)).astype(np.uint8)
    small = lambda part: np.full_like(part, 1e-6) if part.dtype == np.float16 else part
    return jax.tree.map(small, from_blocks(raw, kind))


def formatted(model, name: str, head: bool):
    if name == "float32":
        return model
    pattern = LINEAR + ("|lm_head" if head else "")
    if name != "Q8_0" and name not in BLOCKS:
        return ef.quantize(model, ef.QuantConfig(name, pattern=pattern))
    entries = BLOCKS.get(name, BLOCKS["Q4_1"]).entries

    def slots(model):
        parts = [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]
        linears = [getattr(part, n) for part in parts for n in LINEAR.split("|") if getattr(part, n, None) is not None]
        return [linear.weight for linear in [*linears, *([model.lm_head] if head else [])]]

    # Rows of 1408 are not whole blocks of 256: such matrices are Q8_0, as llama.cpp falls back, too.
    kind = lambda w: name if w.shape[1] % entries == 0 else "Q8_0"
    new = [jax.tree.map(jnp.asarray, blocks(w, kind(w))) for w in slots(model)]
    return eqx.tree_at(slots, model, new)


def program(model, rows: int, tokens: int):
    cache = ef.init_cache(model, rows, tokens, dtype=jnp.float32)

    def decode(model, cache):
        def one(_, state):
            token, cache = state
            logits, cache = ef.decode_step(model, token, cache)
            return jnp.argmax(logits, -1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, tokens, one, (jnp.zeros(rows, jnp.int32), cache))[0]

    compiled = jax.jit(decode).lower(model, cache).compile()
    return lambda: compiled(model, cache).block_until_ready()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("formats", nargs="*", default=["8bit", "int4", "nf4", "Q8_0", "Q4_K", "Q6_K"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--cores", type=int, help="the first so many cores alone")
    parser.add_argument("--head", action="store_true")
    args = parser.parse_args()
    if args.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # before the first program
    model = ef.init(ef.models.LlamaConfig(**SHAPE), key=jax.random.key(0))
    runs = {}
    for name in ["float32", *args.formats]:
        packed = formatted(model, name, args.head)
        for kernels in ("1", "0") if name != "float32" else ("1",):
            os.environ["EASYFN_KERNELS"] = kernels
            jax.clear_caches()  # a trace remembers what it chose
            runs[name, kernels] = program(packed, args.rows, args.tokens)
            runs[name, kernels]()
    taken: dict = {key: [] for key in runs}
    for n in range(args.rounds):
        for key in list(runs)[:: 1 if n % 2 else -1]:
            began = time.process_time(), time.perf_counter()
            runs[key]()
            taken[key].append((time.process_time() - began[0], time.perf_counter() - began[1]))

    def over(key, clock: int) -> str:
        pairs = zip(taken[key], taken["float32", "1"], strict=True)
        return f"{statistics.median(a[clock] / b[clock] for a, b in pairs):.2f}"

    os.environ.pop("EASYFN_KERNELS")
    own = statistics.median(t[0] for t in taken["float32", "1"]) / args.tokens
    where = "too" if args.head else "in float32"
    print(f"kernels: {ef.quant.kernels()}; {len(os.sched_getaffinity(0))} cores; rows: {args.rows}; the head {where}")
    print(f"float32: {own * 1e3:.2f} ms of processor a token\n")
    print("| format | kernels: processor time | wall | without: processor time | wall |\n|---|---|---|---|---|")
    for name in args.formats:
        cells = [over((name, kernels), clock) for kernels in ("1", "0") for clock in (0, 1)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
