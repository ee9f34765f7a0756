"""Full fine-tuning, LoRA, QLoRA and DoRA of the small trained Llama of this repository, side by side.

    python examples/finetune_lora.py                  # the table of docs/adapters.md, in a few minutes on two cores
    python examples/finetune_lora.py --rates          # the learning rates that were tried for each

The model was trained on Python's standard library. Here it learns a text that it has not seen, easyfn's own pages,
and is judged by those of them that are held out. All take the same steps over the same batches in the same
order; each has the learning rate that served it best of those tried.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

import easyfn as ef

HERE = Path(__file__).parent
LENGTH, BATCH, RANK = 128, 8, 16
TRIED = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def adapted(model: Any, **options: Any) -> Any:
    """Rank 16 on every linear layer; the embeddings, which are the head too, train as they are: the words are new."""
    own = {"modules_to_save": "embed_tokens", **options}
    return ef.apply_lora(model, "all-linear", rank=RANK, alpha=2 * RANK, key=jax.random.key(0), **own)


class Method(NamedTuple):
    make: Callable[[Any], Any]
    rate: float  # the best of those tried
    trainable: str | None = None


METHODS = {
    "full": Method(lambda model: model, 2e-3),
    "LoRA": Method(adapted, 8e-3),
    "QLoRA": Method(lambda model: adapted(ef.quantize(model, "nf4")), 8e-3),
    "DoRA": Method(lambda model: adapted(model, dora=True), 8e-3),
    "full, linear layers": Method(lambda model: model, 4e-3, "proj"),
    "LoRA, linear layers": Method(lambda model: adapted(model, modules_to_save=None), 8e-3),
}


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens to train on and rows held out: whole files, one in eight by the hash of its path."""
    root = HERE.parent
    tokenizer = Tokenizer.from_file(str(HERE / "tiny" / "tokenizer.json"))
    files = sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("benchmarks/*.md")])
    parts: tuple[list[int], list[int]] = ([], [])
    for path in files:
        held = zlib.crc32(path.relative_to(root).as_posix().encode()) % 8 == 0
        parts[held].extend(tokenizer.encode(path.read_text("utf-8")).ids)
    train, held_out = (np.array(ids[: len(ids) // LENGTH * LENGTH], np.int32).reshape(-1, LENGTH) for ids in parts)
    return train, held_out


def tune(
    model: Any, rate: float, train: np.ndarray, steps: int, trainable: str | None = None
) -> tuple[Any, float, float, int]:
    """The trained model, the seconds of a step, the loss of the last ten batches, and how many numbers trained."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
    state = ef.to_state(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)), trainable=trainable)
    step = jax.jit(ef.train_step)
    rng = np.random.default_rng(0)
    losses, began = [], 0.0
    for n in range(steps):
        state, metrics = step(state, {"input_ids": jnp.asarray(train[rng.integers(0, len(train), BATCH)])})
        losses.append(float(metrics["loss"]))
        if n == 0:  # compiled by now
            began = time.perf_counter()
    seconds = (time.perf_counter() - began) / max(1, steps - 1)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return state.model, seconds, float(np.mean(losses[-10:])), size


def loss_of(model: Any, rows: np.ndarray) -> float:
    measure = jax.jit(lambda model, ids: ef.compute_loss(model, {"input_ids": ids})[0])
    whole = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH, LENGTH)
    return float(np.mean([measure(model, jnp.asarray(ids)) for ids in whole]))


def compare(
    steps: int = 100, held: int = 20, methods: Any = tuple(METHODS), rates: Any = None, stack: bool = False
) -> list[dict[str, Any]]:
    """One row per method and learning rate; `held` batches are what the loss is measured on."""
    model = ef.load(HERE / "tiny", dtype=jnp.float32, stack=stack, progress=False)
    train, held_out = texts()
    rows = held_out[:: max(1, len(held_out) // (held * BATCH))][: held * BATCH]
    before = loss_of(model, rows)
    found = []
    for name in methods:
        method = METHODS[name]
        for rate in rates or (method.rate,):
            tuned, seconds, last, size = tune(method.make(model), rate, train, steps, method.trainable)
            after = loss_of(tuned, rows)
            found.append(
                {
                    "method": name,
                    "rate": rate,
                    "parameters": size,
                    "before": before,
                    "after": after,
                    "drop": before - after,
                    "training": last,
                    "seconds": seconds,
                }
            )
            row = found[-1]
            print(
                f"| {name} | {rate:g} | {row['parameters']:,} | {before:.3f} | {after:.3f} | {row['drop']:.3f} | "
                f"{row['drop'] / found[0]['drop']:.3f} | {last:.3f} | {1000 * seconds:.0f} |",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rates", action="store_true", help="try several learning rates for each")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args()
    print("| method | learning rate | trained | before | after | drop | of full | training loss | ms a step |")
    print("|---|---|---|---|---|---|---|---|---|")
    compare(options.steps, methods=options.methods, rates=TRIED if options.rates else None)


if __name__ == "__main__":
    main()
