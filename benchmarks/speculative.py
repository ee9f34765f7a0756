"""Speculative decoding beside plain decoding: a draft model, and prompt lookup; the same greedy tokens.

    python benchmarks/speculative.py [--rounds 5] [--new 128] [--drafted 4]

Interleaved in one process, the order turning; ratios are paired, plain over speculative (above 1 is faster). Two models: the
shipped one (`examples/tiny`) with its own first layers as drafts, on held-out text, and the 8-layer model of `compare.py`
whose last six layers say nothing, so that a draft of its first two is always right: the most that the machinery can give.
*A pass of 1 + n* is a plain pass of so many tokens over one of one: what no draft, however good, gets below.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import compare
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import easyfn as ef

TINY = Path(__file__).parent.parent / "examples" / "tiny"


def first_layers(model: Any, count: int) -> Any:
    return eqx.tree_at(lambda m: m.model.layers, model, model.model.layers[:count])


def silent_after(model: Any, count: int) -> Any:
    """The model, of which the layers from `count` on add nothing to the residual stream."""
    quiet = {
        path: jnp.zeros_like(w)
        for path, w in ef.params(model).items()
        if any(f"layers.{n}." in path for n in range(count, len(model.model.layers)))
        and ("o_proj.weight" in path or "down_proj.weight" in path)
    }
    return ef.with_params(model, quiet)


def sampled(runs: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds + 1):  # the first compiles
        for name in list(runs) if n % 2 else list(runs)[::-1]:
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            taken[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in taken.items()}


def paired(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def judged(what: str, model: Any, ids: Any, kinds: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    options: dict[str, Any] = dict(max_new_tokens=args.new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    runs = {"plain": lambda: ef.generate(model, ids, **options)}
    runs |= {name: lambda more=more: ef.generate(model, ids, **options, **more) for name, more in kinds.items()}
    want, outs = np.asarray(runs["plain"]().sequences), {name: run() for name, run in runs.items()}
    taken = sampled(runs, args.rounds)
    for name in kinds:
        out = outs[name]
        same = np.array_equal(np.asarray(out.sequences), want)
        share = float(jnp.sum(out.accepted) / jnp.maximum(jnp.sum(out.proposed), 1))
        ratio = paired(taken["plain"], taken[name])
        print(f"| {what} | {name} | {ratio:.2f} | {share:.2f} | {'yes' if same else 'NO'} |", flush=True)


def passes(what: str, model: Any, args: argparse.Namespace) -> None:
    def run(count: int) -> Any:
        ids, cache = jnp.ones((1, count), jnp.int32), ef.init_cache(model, 1, 256)
        step = jax.jit(lambda m, ids, cache: ef.forward(m, ids, cache=cache).logits)
        return lambda: [step(model, ids, cache) for _ in range(10)]

    taken = sampled({"one": run(1), "many": run(1 + args.drafted)}, args.rounds)
    print(f"| {what} | a pass of 1 + {args.drafted} | {paired(taken['many'], taken['one']):.2f} | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--drafted", type=int, default=4)
    args = parser.parse_args()
    print("| model | drafts by | plain over it | accepted | same tokens |\n|---|---|---|---|---|")
    tiny = ef.load(TINY, dtype="float32", progress=False)
    held_out = np.fromfile(TINY / "held_out.u16", np.uint16).astype(np.int32)
    lookup = {"prompt_lookup_num_tokens": 2 * args.drafted}
    drafts = {
        f"its first {n} layers": {"assistant_model": first_layers(tiny, n), "num_assistant_tokens": args.drafted}
        for n in (2, 4)
    }
    judged("tiny", tiny, held_out[None, 1000:1064], drafts | {"lookup": lookup}, args)
    copied = np.tile(held_out[None, 1000:1048], (1, 4))
    judged("tiny, text that repeats", tiny, copied, {"lookup": lookup}, args)
    passes("tiny", tiny, args)
    large = silent_after(ef.load(compare.checkpoint(), progress=False), 2)
    ids = np.random.RandomState(0).randint(3, 32000, (1, 32))
    draft = {"assistant_model": first_layers(large, 2), "num_assistant_tokens": args.drafted}
    judged("8 layers, 6 silent", large, ids, {"its first 2 layers": draft, "lookup": lookup}, args)
    passes("8 layers", large, args)


if __name__ == "__main__":
    main()
