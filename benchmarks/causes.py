"""Where the time of the four main programs goes: products, what is computed between them, copies, writing of caches, waiting.

    python benchmarks/causes.py [--rounds 8]

The model is the 8-layer Llama of `compare.py` in float32. XLA's profile has the time of every operation of the compiled
program; the program's text says what kind each is. *Waiting* is the rest of the wall time: dispatch of operations, and of the
program from Python. Shares, no times; operations that ran beside each other count as often as they ran, then all are scaled
to the wall.
"""

from __future__ import annotations

import argparse
import collections
import glob
import re
import tempfile
import time
from typing import Any

import compare
import jax
import jax.numpy as jnp
import numpy as np
import optax

import easyfn as ef

KINDS = ["products", "between them", "copies", "cache writes", "waiting"]


def kinds_of(text: str) -> dict[str, str]:
    """The kind of every operation that the profile may name, from the text of a compiled program."""
    bodies: dict[str, str] = {}
    for name, body in re.findall(r"^%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S):
        bodies[name] = body
    found = {}
    for name, kind, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = [^=]*? ([a-z][\w\-]*)\(([^\n]*)", text, re.M):
        called = re.search(r"calls=%?([\w.\-]+)", rest)
        body = bodies.get(called[1], "") if called else ""
        if kind in ("dot", "custom-call") or "ynn" in name or re.search(r" (dot|convolution)\(", body):
            found[name] = "products"
        elif kind == "dynamic-update-slice" or "dynamic-update-slice(" in body:
            found[name] = "cache writes"
        elif kind in ("copy", "transpose", "concatenate", "pad", "slice") or (
            kind == "fusion"
            and re.match(r"(copy|transpose|bitcast|slice|concatenate)[\w]*fusion", name.replace(".", "_"))
        ):
            found[name] = "copies"
        elif kind not in (
            "while",
            "call",
            "conditional",
            "tuple",
            "parameter",
            "get-tuple-element",
            "constant",
            "bitcast",
        ):
            found[name] = "between them"
    return found


def programs() -> dict[str, tuple[Any, Any]]:
    """Each compiled program, and a function that runs it once."""
    model = ef.load(compare.checkpoint(), progress=False)
    rng = np.random.RandomState(0)
    made: dict[str, tuple[Any, Any]] = {}

    def add(name: str, compiled: Any, run: Any) -> None:
        made[name] = (compiled, run)

    ids = jnp.asarray(rng.randint(3, 32000, (1, 512)))
    forward = jax.jit(lambda m, ids: ef.forward(m, ids).logits).lower(model, ids).compile()
    add("forward 1x512", forward, lambda: forward(model, ids))
    for rows in (1, 8):
        token, held = (
            jnp.ones((rows, 1), jnp.int32),
            [ef.prefill(model, ids[:, :32].repeat(rows, 0), max_length=256)[1]],
        )

        def cached(m: Any, ids: Any, cache: Any) -> Any:
            out = ef.forward(m, ids, cache=cache)
            return out.logits, out.cache

        step = jax.jit(cached, donate_argnums=2).lower(model, token, held[0]).compile()

        def decode(step: Any = step, token: Any = token, held: Any = held) -> Any:
            logits, held[0] = step(model, token, held[0])
            return logits

        add(f"decode, {rows} rows", step, decode)
    batch = {"input_ids": jnp.asarray(rng.randint(3, 32000, (4, 256)))}
    state = [ef.to_state(ef.load(compare.checkpoint(), progress=False), optax.adamw(1e-4))]
    train = jax.jit(ef.train_step, donate_argnums=0).lower(state[0], batch).compile()

    def once() -> Any:
        state[0], metrics = train(state[0], batch)
        return metrics

    add("train 4x256", train, once)
    return made


def shares(compiled: Any, run: Any, rounds: int) -> dict[str, float]:
    kinds = kinds_of(compiled.as_text())
    jax.block_until_ready(run())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            for _ in range(rounds):
                jax.block_until_ready(run())
            wall = time.perf_counter() - start
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        profile = jax.profiler.ProfileData.from_file(file)
    spent: collections.Counter[str] = collections.Counter()
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in kinds:
                    spent[kinds[event.name]] += event.duration_ns / 1e9
    total = sum(spent.values())
    covered = min(total, wall)
    out = {kind: spent[kind] / total * covered / wall for kind in KINDS[:-1]}
    return out | {"waiting": 1 - covered / wall, "overlap": total / wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    print(f"| program | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for name, (compiled, run) in programs().items():
        part = shares(compiled, run, args.rounds)
        print(f"| {name} | {' | '.join(f'{100 * part[kind]:.0f} %' for kind in KINDS)} |", flush=True)


if __name__ == "__main__":
    main()
