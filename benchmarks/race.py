"""Pretraining, beside torch and transformers: the same init, batches in the same order, the same recipe; loss and time of each.

    python benchmarks/race.py --steps 150

The small Llama of `train_tiny.py` on Python's standard library, AdamW with warm-up and a cosine, gradients clipped to norm 1.
Each side has a process of its own (torch's idle threads take a core for a while) and they take turns, ten steps each, so that
a busy machine slows both. Prints the losses and the ratio of the medians of the steps' times; ours without its first step,
which compiles and is said apart.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from train_tiny import OUT, texts, tokens_of

import easyfn as ef

BETAS, DECAY = (0.9, 0.98), 0.05


def rate(step: int, steps: int, top: float) -> float:
    warm = min((step + 1) / 10, 1.0)
    return top * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def ours(folder: Path, rates: np.ndarray):
    import jax
    import optax

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda n: jax.numpy.asarray(rates)[n], b1=BETAS[0], b2=BETAS[1], weight_decay=DECAY),
    )
    state = ef.to_state(ef.load(folder, progress=False), optimizer)
    step = jax.jit(ef.train_step, donate_argnums=0)

    def train(batch: np.ndarray) -> float:
        nonlocal state
        state, metrics = step(state, {"input_ids": batch})
        return float(metrics["loss"])

    return train, lambda rows: float(jax.jit(lambda m, b: ef.compute_loss(m, {"input_ids": b})[0])(state.model, rows))


def theirs(folder: Path, rates: np.ndarray):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, betas=BETAS, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: float(rates[min(n, len(rates) - 1)]))

    def loss_of(batch: np.ndarray):
        ids = torch.from_numpy(batch.astype(np.int64))
        return module(input_ids=ids, labels=ids, use_cache=False).loss

    def train(batch: np.ndarray) -> float:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    def held(rows: np.ndarray) -> float:
        with torch.no_grad():
            return loss_of(rows).item()

    return train, held


SIDES = {"easyfn": ours, "torch": theirs}


def side(name: str, folder: Path) -> None:
    """A process of one side: each line that it reads is a number of steps; it answers with their losses and times."""
    given = np.load(folder / "batches.npz")
    train, held = SIDES[name](folder, given["rates"])
    done = 0
    for line in sys.stdin:
        losses, times = [], []
        for batch in given["batches"][done : done + int(line)]:
            begin = time.perf_counter()
            losses.append(train(batch))
            times.append(time.perf_counter() - begin)
        done += len(losses)
        answer = {"losses": losses, "times": times} if losses else {"held": held(given["held"])}
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return side(args.side[0], Path(args.side[1]))

    import jax

    train, held = texts()
    tokenizer = Tokenizer.from_file(str(OUT / "tokenizer.json"))
    ids, held_ids = tokens_of(tokenizer, train[:400]), tokens_of(tokenizer, held[:20])
    starts = np.random.default_rng(0).integers(0, len(ids) - args.length, (args.steps, args.batch))
    batches = np.stack([[ids[s : s + args.length] for s in row] for row in starts]).astype(np.int32)
    rows = held_ids[: len(held_ids) // args.length * args.length].reshape(-1, args.length)[:64].astype(np.int32)
    rates = np.array([rate(n, args.steps, args.rate) for n in range(args.steps)], np.float32)
    with tempfile.TemporaryDirectory() as folder:
        ef.save(ef.init(ef.read_config(OUT), key=jax.random.key(0)), folder)
        np.savez(Path(folder) / "batches.npz", batches=batches, held=rows, rates=rates)
        command = [sys.executable, __file__, "--side"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running = {name: subprocess.Popen([*command, name, folder], **pipes) for name in SIDES}

        def ask(name: str, steps: int) -> dict:
            print(steps, file=running[name].stdin, flush=True)
            return json.loads(running[name].stdout.readline())

        found = {name: {"losses": [], "times": []} for name in SIDES}
        for turn in range(-(-args.steps // 10)):
            for name in list(SIDES)[:: 1 if turn % 2 else -1]:
                for key, values in ask(name, 10).items():
                    found[name][key] += values
        ends = {name: ask(name, 0)["held"] for name in SIDES}
        for process in running.values():
            process.communicate()

    mine, other = found["easyfn"], found["torch"]
    apart = max(abs(a - b) / b for a, b in zip(mine["losses"], other["losses"], strict=True))
    ratio = np.median(mine["times"][1:]) / np.median(other["times"][1:])
    print(f"jax {jax.__version__}, {args.steps} steps of {args.batch} x {args.length} tokens")
    print(f"loss at the end: easyfn {np.mean(mine['losses'][-10:]):.4f}, torch {np.mean(other['losses'][-10:]):.4f}")
    print(f"held out: easyfn {ends['easyfn']:.4f}, torch {ends['torch']:.4f}")
    print(f"a step's losses are at most {apart:.2%} apart; a step takes {ratio:.2f} of torch's time")
    print(f"easyfn's first step, which compiles: {mine['times'][0] / np.median(other['times'][1:]):.1f} steps of torch")


if __name__ == "__main__":
    main()
