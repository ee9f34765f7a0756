"""What several adapters in one model cost, beside the model without any: prefill and decoding of 8 rows.

    python benchmarks/adapters.py [--rounds 7] [--rows 8]

Every row of the batch takes an adapter of its own out of 1, 8 or 64 (rank 8, on all linear layers). The programs are
compiled first and then run in turns; printed is the smallest time of each and its ratio to that of the base.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

CONFIG = ef.models.LlamaConfig(
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)


def adapter(base: ef.models.LlamaConfig, seed: int) -> dict:
    made = ef.split_lora(ef.apply_lora(base, rank=8, key=jax.random.key(seed)))[1]
    return jax.tree.map(lambda x: x + 0.01, made)


def cases(rows: int) -> dict[str, Callable[[], object]]:
    base = ef.init(CONFIG, key=jax.random.key(0))
    long = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (rows, 128)))
    prefill = jax.jit(lambda m, ids, rows: ef.forward(m, ids, adapter_ids=rows, logits_to_keep=1).logits)

    def decode(model, ids):
        out = ef.generate(model, long[:, :8], max_new_tokens=24, do_sample=False, eos_token_id=None, adapter_ids=ids)
        return out.sequences

    found: dict[str, Callable[[], object]] = {}

    def add(name, model, ids):
        found[f"prefill {rows}x128, {name}"] = lambda: prefill(model, long, ids).block_until_ready()
        found[f"decode {rows}x24, {name}"] = lambda: jax.block_until_ready(decode(model, ids))

    add("base", base, None)
    one = ef.join_lora(base, adapter(base, 1))
    add("one LoRA", one, None)
    for n in (1, 8, 64):
        model = ef.with_adapters(base, {f"a{i}": adapter(base, i) for i in range(n)})
        if n == 64:
            add("64, one chosen for all", ef.use_adapter(model, 5), None)
        add(f"{n}, by row", model, jnp.arange(rows) * 7 % n)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    runs = cases(args.rows)
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, float("inf"))
    for n in range(args.rounds):
        for name in list(runs) if n % 2 == 0 else list(runs)[::-1]:
            began = time.perf_counter()
            runs[name]()
            best[name] = min(best[name], time.perf_counter() - began)
    print("| case | ms | over the base |\n|---|---|---|")
    for name, took in best.items():
        print(f"| {name} | {took * 1e3:.1f} | {took / best[name.split(', ')[0] + ', base']:.2f} |")


if __name__ == "__main__":
    main()
