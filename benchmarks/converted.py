"""A converted Llama beside the native one and beside transformers on torch, on one float32 checkpoint: ratios.

    python benchmarks/converted.py [--rounds 5] [--only forward compile convert]

The model of `compare.py`. `forward`: interleaved as there, one process for each side, one sample each per round, the order
turning. `compile`: tracing and compiling a forward pass in fresh processes, by turns, no cache. `convert`: a Llama of the shape
of Llama 3.2 1B whose weights are on torch's `meta` device, in seconds of a processor, with the peak of memory over what the
imports took. Goals: 1.15 of native and 0.7 of eager; twice native's; 60 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from compare import Side, checkpoint, torch_case

CASES = ("1 512", "8 128")
SIDES = ("eager", "native", "converted")
ONE_BILLION = dict(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, tie_word_embeddings=True,
    rope_parameters={"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_theta": 500000.0},
)  # fmt: skip


def loaded(side: str) -> Any:
    import easyfn as ef

    return ef.load(checkpoint(), progress=False, via="torch" if side == "converted" else None)


def forward(side: str, case: str) -> Any:
    if side == "eager":
        return torch_case(["forward", *case.split()], checkpoint())
    import jax
    import numpy as np

    import easyfn as ef

    model = loaded(side)
    ids = jax.numpy.asarray(np.random.default_rng(0).integers(0, 32000, tuple(map(int, case.split()))))
    run = jax.jit(lambda m, ids: ef.forward(m, ids).logits)
    return lambda: run(model, ids).block_until_ready()


def compile_once(side: str, case: str) -> dict[str, float]:
    import jax

    import easyfn as ef

    model = loaded(side)
    jax.jit(lambda x: x + 1)(1.0)  # what the first program of a process pays for
    ids = jax.ShapeDtypeStruct(tuple(map(int, case.split())), "int32")
    began, work = time.perf_counter(), time.process_time()
    jax.jit(lambda m, ids: ef.forward(m, ids).logits).lower(model, ids).compile()
    return {"seconds": time.perf_counter() - began, "processor": time.process_time() - work}


def convert() -> dict[str, float]:
    import torch
    import transformers

    import easyfn as ef

    with torch.device("meta"):
        module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ONE_BILLION)).eval()
    example = torch.zeros(2, 7, dtype=torch.long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, work = time.perf_counter(), time.process_time()
    model = ef.from_torch(module, {"input_ids": example, "attention_mask": torch.ones_like(example)})
    took = {"seconds": time.perf_counter() - began, "processor": time.process_time() - work}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return {**took, "MiB": peak, "parameters": ef.num_params(model), "free": len(model.config.graph.sizes)}


def child(*words: str) -> dict[str, float]:
    run = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def serve(side: str) -> None:
    run: Any = None
    for line in sys.stdin:
        word, _, case = line.strip().partition(" ")
        began = time.perf_counter()
        if word == "prepare":
            run = forward(side, case)
        run()
        print(json.dumps(time.perf_counter() - began), flush=True)


def compared(case: str, rounds: int) -> str:
    sides = {name: Side(name, __file__) for name in SIDES}
    for side in sides.values():
        side.ask(f"prepare {case}")
    samples: dict[str, list[float]] = {name: [] for name in SIDES}
    for n in range(rounds):
        for name in SIDES if n % 2 == 0 else SIDES[::-1]:
            samples[name].append(sides[name].ask("sample"))
    for side in sides.values():
        side.stop()
    of = lambda other: statistics.median(a / b for a, b in zip(samples["converted"], samples[other], strict=True))
    middle = " | ".join(f"{statistics.median(samples[name]):.3f}" for name in SIDES)
    return f"| forward {case} | {middle} | {of('native'):.2f} | {of('eager'):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["forward", "compile", "convert"])
    parser.add_argument("--serve")
    parser.add_argument("--child", nargs="*")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if args.child:
        what, *rest = args.child
        return print(json.dumps(convert() if what == "convert" else compile_once(rest[0], " ".join(rest[1:]))))
    checkpoint()
    if "forward" in args.only:
        print(
            "| case | eager s | native s | converted s | of native | of eager |\n|---|---|---|---|---|---|", flush=True
        )
        for case in CASES:
            print(compared(case, args.rounds), flush=True)
    if "compile" in args.only:
        found: dict[str, list[float]] = {name: [] for name in SIDES[1:]}
        for n in range(3):
            for name in SIDES[1:] if n % 2 == 0 else SIDES[:0:-1]:
                found[name].append(child("--child", "compile", name, *CASES[0].split())["processor"])
        native, converted = (statistics.median(found[name]) for name in SIDES[1:])
        print(f"\ncompile {CASES[0]}, s of a processor: {native:.2f} {converted:.2f}, ratio {converted / native:.2f}")
    if "convert" in args.only:
        print("\nconvert a 1B on meta:", {k: round(v, 1) for k, v in child("--child", "convert").items()})


if __name__ == "__main__":
    main()
