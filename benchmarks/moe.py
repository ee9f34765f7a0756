"""A mixture of experts beside transformers, eager and with its fused experts, on one float32 checkpoint: ratios.

    python benchmarks/moe.py [--rounds 5]

Qwen3-MoE: 8 layers, 32 experts of width 256, top 4, hidden 512. Cases are a forward pass of 1, 64 and 2048 tokens. Interleaved
as in `compare.py`: one process for each side, one sample each per round, the order turning. Work is counted too: `flops` of the
compiled program beside those that a pass through the chosen experts alone has.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = dict(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1024,
    moe_intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    num_experts=32,
    num_experts_per_tok=4,
    norm_topk_prob=True,
)
TOKENS = (1, 64, 2048)
SIDES = ("eager", "fused", "easyfn")


def checkpoint() -> Path:
    """The random float32 checkpoint that all sides load, made once."""
    folder = Path(tempfile.gettempdir()) / "easyfn-bench-qwen3-moe"
    if not (folder / "config.json").exists():
        code = (
            "import torch; from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM; torch.manual_seed(0);"
            f"Qwen3MoeForCausalLM(Qwen3MoeConfig(**{SHAPE!r})).save_pretrained({str(folder)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def torch_side(tokens: int, experts: str) -> Any:
    import torch
    from transformers import Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM.from_pretrained(checkpoint(), experts_implementation=experts).eval()
    ids = torch.arange(tokens)[None] % SHAPE["vocab_size"]

    def run() -> None:
        with torch.no_grad():
            model(ids, use_cache=False)

    return run


def easyfn_side(tokens: int) -> Any:
    import jax
    import jax.numpy as jnp

    import easyfn as ef

    model = ef.load(checkpoint(), progress=False)
    ids = jnp.arange(tokens)[None] % SHAPE["vocab_size"]
    compiled = jax.jit(lambda m, i: ef.forward(m, i).logits).lower(model, ids).compile()
    return lambda: compiled(model, ids).block_until_ready()


def work(tokens: int) -> float:
    """Operations of a pass beside those of the chosen experts, attention, router and head: 1 is nothing in vain."""
    import easyfn as ef

    s, experts = SHAPE, 3 * 2 * SHAPE["hidden_size"] * SHAPE["moe_intermediate_size"] * SHAPE["num_experts_per_tok"]
    heads = (s["num_attention_heads"] * 2 + s["num_key_value_heads"] * 2) * s["head_dim"] * s["hidden_size"] * 2
    scores = 4 * s["num_attention_heads"] * s["head_dim"] * tokens
    layer = experts + heads + scores + 2 * s["hidden_size"] * s["num_experts"]
    least = tokens * (s["num_hidden_layers"] * layer + 2 * s["hidden_size"] * s["vocab_size"])
    return float(ef.flops(ef.abstract(ef.read_config(checkpoint())), 1, tokens)) / least


def serve(side: str, tokens: int) -> None:
    """A side's process: prepares, runs once, then one sample for every line of its input."""
    run = (
        easyfn_side(tokens) if side == "easyfn" else torch_side(tokens, {"eager": "eager", "fused": "grouped_mm"}[side])
    )
    run()
    print("ready", flush=True)
    repeats = {1: 20, 64: 5}.get(tokens, 1)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(repeats):
            run()
        print((time.perf_counter() - begin) / repeats, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve[0], int(args.serve[1]))
    checkpoint()
    print("| tokens | eager s | fused s | easyfn s | of eager | of fused | work |\n|---|---|---|---|---|---|---|")
    for tokens in TOKENS:
        command = [sys.executable, __file__, "--serve"]
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        running = {side: subprocess.Popen([*command, side, str(tokens)], **pipes) for side in SIDES}
        for process in running.values():
            assert process.stdout.readline().strip() == "ready"
        samples: dict[str, list[float]] = {side: [] for side in SIDES}
        for n in range(args.rounds):
            for side in SIDES[n % 3 :] + SIDES[: n % 3]:
                running[side].stdin.write("\n")
                running[side].stdin.flush()
                samples[side].append(float(running[side].stdout.readline()))
        for process in running.values():
            process.stdin.close()
            process.wait()
        times = {side: statistics.median(values) for side, values in samples.items()}
        paired = {
            side: statistics.median(
                ours / theirs for ours, theirs in zip(samples["easyfn"], samples[side], strict=True)
            )
            for side in ("eager", "fused")
        }
        shown = " | ".join(f"{times[side]:.4f}" for side in SIDES)
        print(
            f"| {tokens} | {shown} | {paired['eager']:.2f} | {paired['fused']:.2f} | {work(tokens):.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
