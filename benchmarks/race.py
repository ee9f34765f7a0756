"""Pretraining, beside torch and transformers: the same init, batches in the same order, the same recipe; loss and time of each.

    python benchmarks/race.py --steps 150

The small Llama of `train_tiny.py` on Python's standard library, AdamW with warm-up and a cosine, gradients clipped to norm 1.
The two sides take turns step by step, so that a busy machine slows both. Prints the losses and the ratio of the medians of the
steps' times; ours without its first step, which compiles and is said apart.
"""

from __future__ import annotations

import argparse
import math
import time

import jax
import numpy as np
import optax
import torch
from tokenizers import Tokenizer
from train_tiny import OUT, texts, tokens_of

import easyfn as ef

BETAS, DECAY = (0.9, 0.98), 0.05


def rate(step: int, steps: int, top: float) -> float:
    warm = min((step + 1) / 10, 1.0)
    return top * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def ours(model: ef.models.LlamaConfig, rates: np.ndarray):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda n: jax.numpy.asarray(rates)[n], b1=BETAS[0], b2=BETAS[1], weight_decay=DECAY),
    )
    state = ef.to_state(model, optimizer)
    step = jax.jit(ef.train_step, donate_argnums=0)

    def train(batch: np.ndarray) -> float:
        nonlocal state
        state, metrics = step(state, {"input_ids": batch})
        return float(metrics["loss"])

    return train, lambda: state.model


def theirs(module, rates: np.ndarray):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, betas=BETAS, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: float(rates[min(n, len(rates) - 1)]))
    module.train()

    def train(batch: np.ndarray) -> float:
        ids = torch.from_numpy(batch.astype(np.int64))
        loss = module(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    return train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(2)

    train, held = texts()
    tokenizer = Tokenizer.from_file(str(OUT / "tokenizer.json"))
    ids, held_ids = tokens_of(tokenizer, train[:400]), tokens_of(tokenizer, held[:20])
    model = ef.init(ef.read_config(OUT), key=jax.random.key(0))
    module = ef.to_torch(model).requires_grad_(True)
    rates = np.array([rate(n, args.steps, args.rate) for n in range(args.steps)], np.float32)
    sides = {"easyfn": ours(model, rates), "torch": (theirs(module, rates), None)}

    rng = np.random.default_rng(0)
    losses: dict[str, list[float]] = {name: [] for name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(args.steps):
        starts = rng.integers(0, len(ids) - args.length, args.batch)
        batch = np.stack([ids[s : s + args.length] for s in starts]).astype(np.int32)
        for name in list(sides)[:: 1 if n % 2 else -1]:
            begin = time.perf_counter()
            losses[name].append(sides[name][0](batch))
            times[name].append(time.perf_counter() - begin)

    rows = held_ids[: len(held_ids) // args.length * args.length].reshape(-1, args.length)[:64].astype(np.int32)
    mine = float(jax.jit(lambda m, b: ef.compute_loss(m, {"input_ids": b})[0])(sides["easyfn"][1](), rows))
    with torch.no_grad():
        wide = torch.from_numpy(rows.astype(np.int64))
        other = module.eval()(input_ids=wide, labels=wide).loss.item()
    apart = max(abs(a - b) / b for a, b in zip(losses["easyfn"], losses["torch"], strict=True))
    ratio = np.median(times["easyfn"][1:]) / np.median(times["torch"][1:])
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, {args.steps} steps of {args.batch} x {args.length} tokens"
    )
    print(f"loss at the end: easyfn {np.mean(losses['easyfn'][-10:]):.4f}, torch {np.mean(losses['torch'][-10:]):.4f}")
    print(f"held out: easyfn {mine:.4f}, torch {other:.4f} ({abs(mine - other) / other:.2%} apart)")
    print(f"a step's losses are at most {apart:.2%} apart; a step takes {ratio:.2f} of torch's time")
    print(
        f"easyfn's first step, which compiles: {times['easyfn'][0] / np.median(times['torch'][1:]):.1f} steps of torch"
    )


if __name__ == "__main__":
    main()
