"""Throughput of `ef.Engine` beside transformers' static batches: requests of mixed lengths, interleaved, ratios.

    python benchmarks/engine.py [--rounds 3] [--rows 32] [--page-size 32] [--chunk 128]

64 requests with prompts of 16 to 256 tokens and 16 to 128 new ones (seeded), greedy, on the float32 checkpoint of
`compare.py`. The other side takes them as they come in batches of 8, padded on the left, each batch as long as its longest
output, which is what `generate` does. Both sides are warm; only the tokens that were asked for count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

import numpy as np
from compare import Side, checkpoint

REQUESTS, STATIC = 64, 8


def workload() -> list[tuple[list[int], int]]:
    """Prompts, and how many tokens each is continued by."""
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 32000, n).tolist() for n in random.integers(16, 257, REQUESTS)]
    return list(zip(prompts, random.integers(16, 129, REQUESTS).tolist(), strict=True))


def torch_side():
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint()).eval()
    model.generation_config.eos_token_id = None

    def run(work: list[tuple[list[int], int]]) -> None:
        for at in range(0, len(work), STATIC):
            batch = work[at : at + STATIC]
            longest, new = max(len(p) for p, _ in batch), max(n for _, n in batch)
            ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in batch])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

    return run


def easyfn_side():
    import easyfn as ef

    model = ef.load(checkpoint(), progress=False)
    rows, page_size, chunk = (int(os.environ[f"ENGINE_{n}"]) for n in ("ROWS", "PAGE_SIZE", "CHUNK"))
    engine = ef.Engine(
        model, max_batch_size=rows, max_model_length=384, page_size=page_size, prefill_chunk=chunk, prefix_cache=False
    )
    engine.warm_up()

    def run(work: list[tuple[list[int], int]]) -> None:
        requests = [engine.submit(prompt, max_new_tokens=new, eos_token_id=-1) for prompt, new in work]
        for request, (_, new) in zip(requests, work, strict=True):
            assert len(list(request)) == new

    return run


def serve(side: str) -> None:
    """Reads one command a line: `prepare` or `sample`; answers seconds."""
    run = None
    for line in sys.stdin:
        began = time.perf_counter()
        if line.split()[0] == "prepare":
            run = (torch_side if side == "torch" else easyfn_side)()
            run([(prompt[:16], 4) for prompt, _ in workload()[:STATIC]])
        else:
            run(workload())
        print(json.dumps(time.perf_counter() - began), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    checkpoint()
    for name in ("rows", "page_size", "chunk"):
        os.environ[f"ENGINE_{name.upper()}"] = str(getattr(args, name))
    sides = [Side("torch", __file__), Side("easyfn", __file__)]
    first = [side.ask("prepare") for side in sides]
    print(f"to be ready, with load and compilation: torch {first[0]:.1f} s, easyfn {first[1]:.1f} s", flush=True)
    new = sum(n for _, n in workload())
    took: dict[str, list[float]] = {side.name: [] for side in sides}
    for n in range(args.rounds):
        for side in sides if n % 2 == 0 else sides[::-1]:
            took[side.name].append(side.ask("sample"))
    for side in sides:
        side.stop()
    speed = {name: new / statistics.median(seconds) for name, seconds in took.items()}
    ratio = statistics.median(a / b for a, b in zip(took["torch"], took["easyfn"], strict=True))
    print(f"{new} new tokens; transformers {speed['torch']:.0f} tokens/s, easyfn {speed['easyfn']:.0f} tokens/s")
    print(f"paired ratio of tokens/s: {ratio:.2f}")


if __name__ == "__main__":
    main()
