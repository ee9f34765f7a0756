"""A step of DPO and a step of GRPO, rollouts included, beside TRL's trainers: the same sizes, ratios of times.

    pip install "trl==1.16.0" accelerate datasets
    python benchmarks/preferences.py [dpo] [grpo] [--steps 12]

The 8-layer Llama of `compare.py`, random weights in float32, AdamW, gradients clipped to norm 1. DPO: 4 pairs of 64 tokens of
prompt and 64 of an answer, a reference model beside. GRPO: 2 prompts of 64 tokens, 4 answers each of 64, sampled at
temperature 1, judged by a function, no reference (TRL's default). Each side has a process of its own, and they take turns of
two steps. Printed are medians, ours without the first steps, which compile, and TRL's without its first.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from compare import SHAPE

PAIRS, PROMPTS, ANSWERS, LENGTH = 4, 2, 4, 64
END = SHAPE["vocab_size"] - 1  # a token that ends a text, and pads


def words(seed: int, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, END, (rows, length))


def ours(kind: str, folder: Path):
    import jax
    import jax.numpy as jnp
    import optax

    import easyfn as ef

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    state = ef.to_state(ef.load(folder, progress=False), optimizer)
    reference = ef.load(folder, progress=False)

    def loss(model, batch, *, key=None, other=None):
        return ef.dpo_loss(model, batch, reference=other) if kind == "dpo" else ef.grpo_loss(model, batch)

    step = jax.jit(
        lambda state, batch, other: ef.train_step(state, batch, functools.partial(loss, other=other)), donate_argnums=0
    )

    def pairs(n: int) -> dict:
        batch = {}
        for side, add in (("chosen", 1), ("rejected", 2)):
            ids = np.concatenate([words(3 * n, PAIRS, LENGTH), words(3 * n + add, PAIRS, LENGTH)], axis=1)
            labels = np.where(np.arange(2 * LENGTH) < LENGTH, -100, ids)
            batch |= {f"{side}_input_ids": ids, f"{side}_labels": labels, f"{side}_attention_mask": np.ones_like(ids)}
        return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}

    def judged(n: int) -> dict:
        ids = np.repeat(words(n, PROMPTS, LENGTH), ANSWERS, axis=0)
        mask = np.ones_like(ids)
        out = ef.generate(
            state.model,
            ids,
            attention_mask=mask,
            key=jax.random.key(n),
            do_sample=True,
            top_k=0,
            max_new_tokens=LENGTH,
            eos_token_id=END,
            pad_token_id=END,
        )
        rewards = np.asarray(out.sequences)[:, LENGTH:].mean(axis=1).astype(np.float32)
        return ef.rollout_batch(out, mask) | {"advantages": ef.group_advantages(rewards, ANSWERS)}

    def run(n: int) -> None:
        nonlocal state
        state, metrics = step(state, pairs(n) if kind == "dpo" else judged(n), reference)
        jax.block_until_ready(metrics)

    for n in range(10**6):
        yield functools.partial(run, n)


def theirs(kind: str, folder: Path):
    """TRL's own loop in a thread; each item lets it take one step, from the beginning of the step to its end."""
    import queue
    import threading

    import torch
    import transformers
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers

    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    made = Tokenizer(models.WordLevel({f"w{n}": n for n in range(END + 1)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=f"w{END}", pad_token=f"w{END}", padding_side="left"
    )
    text = lambda row: " ".join(f"w{n}" for n in row)
    rows = lambda seed, length: [text(row) for row in words(seed, 16 * PAIRS, length)]
    options = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": 1e-6,
        "max_grad_norm": 1.0,
        "num_train_epochs": 100,
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    module.generation_config.eos_token_id = module.generation_config.pad_token_id = END
    go, done = queue.Queue(), queue.Queue()

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            go.get()

        def on_step_end(self, *_, **__):
            done.put(True)

    prompts = {"prompt": [text + " " for text in rows(0, LENGTH)]}
    if kind == "dpo":
        data = Dataset.from_dict({**prompts, "chosen": rows(1, LENGTH - 1), "rejected": rows(2, LENGTH - 1)})
        config = trl.DPOConfig(per_device_train_batch_size=PAIRS, **options)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        more = {"ref_model": reference}
        build = trl.DPOTrainer
    else:
        data = Dataset.from_dict(prompts)
        config = trl.GRPOConfig(
            per_device_train_batch_size=PROMPTS * ANSWERS,
            num_generations=ANSWERS,
            max_completion_length=LENGTH,
            steps_per_generation=1,
            beta=0.0,
            **options,
        )
        judge = lambda completions, **_: [float(np.mean([int(w[1:]) for w in c.split()] or [0])) for c in completions]
        more = {"reward_funcs": judge}
        build = trl.GRPOTrainer
    trainer = build(module, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Turns()], **more)
    threading.Thread(target=trainer.train, daemon=True).start()

    def run() -> None:
        go.put(True)
        done.get()

    while True:
        yield run


SIDES = {"easyfn": ours, "trl": theirs}


def side(name: str, kind: str, folder: Path) -> None:
    """A process of one side: each line that it reads is a number of steps; it answers with their times."""
    steps = SIDES[name](kind, folder)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            run = next(steps)
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        print("times " + json.dumps(times), flush=True)


def measure(kind: str, folder: str, steps: int) -> None:
    command = [sys.executable, __file__, "--folder", folder, kind, "--side"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = {name: subprocess.Popen([*command, name], **pipes) for name in SIDES}

    def ask(name: str, count: int) -> list[float]:
        print(count, file=running[name].stdin, flush=True)
        while not (line := running[name].stdout.readline()).startswith("times "):
            if not line:
                raise SystemExit(f"{name} ended")
        return json.loads(line.removeprefix("times "))

    found = {name: ask(name, 2)[:0] for name in SIDES}  # the first two compile, and warm up
    for turn in range(steps // 2):
        for name in list(SIDES)[:: 1 if turn % 2 else -1]:
            found[name] += ask(name, 2)
    for process in running.values():
        process.kill()
    mine, other = (float(np.median(found[name])) for name in SIDES)
    print(f"{kind}: a step of easyfn {mine:.2f} s, of TRL {other:.2f} s: {mine / other:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=["dpo", "grpo"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return side(args.side, args.kinds[0], Path(args.folder))
    import jax

    import easyfn as ef

    with tempfile.TemporaryDirectory() as folder:
        ef.save(ef.init(ef.models.LlamaConfig(**SHAPE), key=jax.random.key(0)), folder)
        for kind in args.kinds:
            measure(kind, folder, args.steps)


if __name__ == "__main__":
    main()
