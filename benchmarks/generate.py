"""Generation beside transformers eager, transformers compiled (static cache) and llama.cpp, on one float32 checkpoint.

    python benchmarks/generate.py [decode beams first llama.cpp] [--rounds 5]

Interleaved as in `compare.py`: one process for each side, one sample each per round, the order turning. `first` is the time
of the first call in a fresh process with no compilation cache, and how many programs the second call compiles (0).
llama.cpp takes part where its Python package (llama-cpp-python) and gguf's converter output are: give the file with `--gguf`,
as `easyfn.save_gguf` writes it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from compare import Side, checkpoint

CASES = {
    "decode": ["decode 1 32 128 1", "decode 8 32 128 1"],  # rows, prompt, new tokens, beams
    "beams": ["decode 1 32 128 4", "decode 1 512 128 4"],
}
SIDES = {"decode": ["eager", "compiled", "easyfn"], "beams": ["eager", "easyfn"]}  # torch compiles no beams


def prompt(rows: int, length: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(3, 32000, (rows, length))


def torch_side(numbers: list[int], compiled: bool) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    rows, length, new, beams = numbers
    model = LlamaForCausalLM.from_pretrained(checkpoint()).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor(prompt(rows, length))
    options: dict[str, Any] = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    if beams > 1:
        options["num_beams"] = beams
    if compiled:
        model.forward = torch.compile(model.forward)
        options["cache_implementation"] = "static"
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def easyfn_side(numbers: list[int]) -> Any:
    import easyfn as ef

    rows, length, new, beams = numbers
    model, ids = ef.load(checkpoint(), progress=False), prompt(rows, length)
    options: dict[str, Any] = dict(max_new_tokens=new, min_new_tokens=new, eos_token_id=-1, pad_token_id=0)
    if beams > 1:
        options["num_beams"] = beams
    return lambda: ef.generate(model, ids, do_sample=False, **options).sequences.block_until_ready()


def llama_cpp_side(numbers: list[int], file: str) -> Any:
    from llama_cpp import Llama

    rows, length, new, beams = numbers
    if rows > 1 or beams > 1:
        raise ValueError("llama.cpp's Python package continues one row greedily")
    model = Llama(file, n_ctx=length + new, n_threads=os.cpu_count(), verbose=False)
    ids = prompt(rows, length)[0].tolist()

    def run() -> None:
        model.reset()
        for n, _ in enumerate(model.generate(ids, temp=0.0, repeat_penalty=1.0), 1):
            if n == new:
                return

    return run


def serve(side: str) -> None:
    """Reads one command a line: `prepare CASE` or `sample`; answers seconds."""
    name, _, file = side.partition(":")
    run: Any = None
    for line in sys.stdin:
        words = line.split()
        began = time.perf_counter()
        if words[0] == "prepare":
            numbers = [int(w) for w in words[2:]]
            make = {
                "easyfn": lambda numbers=numbers: easyfn_side(numbers),
                "llama.cpp": lambda numbers=numbers: llama_cpp_side(numbers, file),
            }
            run = make.get(name, lambda numbers=numbers: torch_side(numbers, name == "compiled"))()
        run()
        print(json.dumps(time.perf_counter() - began), flush=True)


def interleaved(case: str, names: list[str], rounds: int) -> dict[str, float]:
    sides = [Side(name, __file__) for name in names]
    for side in sides:
        side.ask(f"prepare {case}")
        side.ask("sample")
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    for n in range(rounds):
        for side in sides if n % 2 == 0 else sides[::-1]:
            samples[side.name].append(side.ask("sample"))
    for side in sides:
        side.stop()
    return {
        name: statistics.median(ours / x for ours, x in zip(samples["easyfn"], samples[name], strict=True))
        for name in names
    }


def first() -> tuple[float, float, int]:
    """Seconds of the first and the second call of decoding one row, and the programs that the second compiles."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    run, compiled = easyfn_side([1, 32, 128, 1]), []
    began = time.perf_counter()
    run()
    took = time.perf_counter() - began
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(1) if record.getMessage().startswith("Compiling") else None
    logging.getLogger("jax").addHandler(handler)
    with jax.log_compiles():
        began = time.perf_counter()
        run()
        again = time.perf_counter() - began
    return took, again, len(compiled)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["decode", "beams", "first"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gguf")
    parser.add_argument("--serve")
    parser.add_argument("--first", action="store_true")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if args.first:
        return print(json.dumps(first()))
    checkpoint()
    print("| rows, prompt, new, beams | easyfn over: eager | compiled | llama.cpp |\n|---|---|---|---|", flush=True)
    for what in args.what:
        if what == "first":
            done = subprocess.run([sys.executable, __file__, "--first"], capture_output=True, text=True, check=True)
            took, again, count = json.loads(done.stdout.splitlines()[-1])
            print(f"\nFirst call {took:.2f} s, second {again:.2f} s, which compiles {count} programs.\n", flush=True)
            continue
        for case in CASES[what]:
            one = case.split()[1] == "1" and what == "decode" and args.gguf
            names = [*SIDES[what], *([f"llama.cpp:{args.gguf}"] if one else [])]
            found = interleaved(case, names, args.rounds)
            cells = [found.get(n) for n in ("eager", "compiled", f"llama.cpp:{args.gguf}")]
            shown = " | ".join("" if x is None else f"{x:.2f}" for x in cells)
            print(f"| {', '.join(case.split()[1:])} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
