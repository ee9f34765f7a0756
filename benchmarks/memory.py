"""Peak memory beside transformers on torch: long contexts, and full fine-tuning with a vocabulary of 128,256.

    python benchmarks/memory.py [forward train] [--lengths 8192 32768]

Each run is a process of its own; its peak is what the kernel says (`VmHWM`) over what was resident before the model was read,
so weights are part of it. Of easyfn also what the compiled program holds beside its arguments, `memory_analysis()`, which
is exact. Seconds are of one run after another: on a busy machine they say little.

The models: `compare.py`'s Llama of 8 layers (and a Mistral of the same sizes with a window of 1024), random float32 weights;
for training with tied embeddings of 128,256 rows, 4 rows of 512 tokens, AdamW. Torch has scaled dot product attention, its
fused AdamW and gradient checkpointing; easyfn `remat="full"`, a loss in chunks and a donated state.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compare import SHAPE

VOCABULARY, ROWS, LENGTH, CHUNK = 128_256, 4, 512, 256


def kilobytes(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name))


def checkpoint(kind: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"easyfn-bench-memory-{kind}"
    if not (folder / "model.safetensors").exists():
        config, more = "LlamaConfig", {"max_position_embeddings": 32768}
        if kind == "window":
            config, more = "MistralConfig", {**more, "sliding_window": 1024}
        if kind == "train":
            more = {"vocab_size": VOCABULARY, "tie_word_embeddings": True}
        code = (
            f"import torch; from transformers import {config}, AutoModelForCausalLM; torch.manual_seed(0);"
            f"AutoModelForCausalLM.from_config({config}(**{ ({**SHAPE, **more})!r})).save_pretrained({str(folder)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def ids_of(rows: int, length: int) -> Any:
    import numpy as np

    return np.random.RandomState(0).randint(3, 32000, (rows, length))


def torch_side(what: str, folder: Path, length: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    before = kilobytes("VmRSS")
    model = AutoModelForCausalLM.from_pretrained(folder)
    if what == "forward":
        ids = torch.tensor(ids_of(1, length))
        start = time.perf_counter()
        with torch.no_grad():
            said = float(model(ids, logits_to_keep=1, use_cache=False).logits.double().norm())
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        model.config.use_cache = False
        ids = torch.tensor(ids_of(ROWS, LENGTH))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        for _ in range(2):
            start = time.perf_counter()
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            said = float(loss)
    return {"seconds": time.perf_counter() - start, "peak": (kilobytes("VmHWM") - before) / 1e6, "said": said}


def easyfn_side(what: str, folder: Path, length: int) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import easyfn as ef

    jax.block_until_ready(jnp.zeros(8))
    before = kilobytes("VmRSS")
    model = ef.load(folder, progress=False)
    if what == "forward":
        ids = jnp.asarray(ids_of(1, length))
        program = jax.jit(lambda m, ids: ef.forward(m, ids, logits_to_keep=1).logits).lower(model, ids).compile()
        start = time.perf_counter()
        said = float(np.linalg.norm(np.asarray(program(model, ids), np.float64)))
    else:
        runtime = ef.Runtime(remat="full")
        state, batch = ef.to_state(model, optax.adamw(1e-4, weight_decay=0.0)), {"input_ids": ids_of(ROWS, LENGTH)}
        del model
        step = functools.partial(ef.train_step, loss=ef.LossConfig(chunk_size=CHUNK), runtime=runtime)
        program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        for _ in range(2):
            start = time.perf_counter()
            state, metrics = program(state, batch)
            said = float(metrics["loss"])
    done = {"seconds": time.perf_counter() - start, "peak": (kilobytes("VmHWM") - before) / 1e6, "said": said}
    memory = program.memory_analysis()
    return done | {"temporary": memory.temp_size_in_bytes / 1e9, "given": memory.argument_size_in_bytes / 1e9}


def run(side: str, what: str, kind: str, length: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--run", side, what, kind, str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=["forward", "train"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        side, what, kind, length = args.run
        one = easyfn_side if side == "easyfn" else torch_side
        print(json.dumps(one(what, checkpoint(kind), int(length))))
        return
    print(
        "| case | torch peak GB | easyfn peak GB | ratio | compiled: beside arguments, GB | time | numbers differ by |"
    )
    print("|---|---|---|---|---|---|---|")
    cases = (
        [("forward", kind, n) for n in args.lengths for kind in ("full", "window")] if "forward" in args.what else []
    )
    if "train" in args.what:
        cases.append(("train", "train", LENGTH))
    for what, kind, length in cases:
        checkpoint(kind)
        theirs, ours = (run(side, what, kind, length) for side in ("torch", "easyfn"))
        ratio, spent = ours["peak"] / theirs["peak"], ours["seconds"] / theirs["seconds"]
        differ = abs(ours["said"] - theirs["said"]) / abs(theirs["said"])
        print(
            f"| {what} {kind} {length} | {theirs['peak']:.2f} | {ours['peak']:.2f} | {ratio:.2f} | "
            f"{ours['temporary']:.3f} of {ours['given']:.3f} | {spent:.2f} | {differ:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
