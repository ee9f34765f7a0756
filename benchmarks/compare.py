"""easyfn beside transformers on torch, on the same checkpoint, interleaved: ratios, never single times.

    python benchmarks/compare.py [forward decode train load import compile] [--rounds 5]

Each side is a process of its own (their thread pools fight when they share one) that prepares a case, runs it once to
compile, and then gives one sample a round; the order turns every round. Printed are medians, their ratio and the median of
the ratios within a round: the last is the one to trust on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = dict(
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)
CASES = {
    "forward": ["forward 1 512 float32", "forward 8 128 float32", "forward 1 512 bfloat16", "forward 8 128 bfloat16"],
    "decode": ["decode 1 32 128 float32", "decode 8 32 128 float32", "decode 1 32 128 bfloat16"],
    "train": ["train 4 256 float32", "train 4 256 bfloat16"],
    "lora": ["lora 4 256 float32", "lora 4 256 bfloat16"],
    "quant": ["decode8bit 1 32 128", "decode8bit 8 32 128", "decodenf4 1 32 128", "prefill8bit 1 512"],
    "load": ["load"],
}
# torch's side of a bfloat16 or quantized case is its float32 eager run: what a user would otherwise have


def checkpoint() -> Path:
    """The random float32 checkpoint that both sides load, made once."""
    folder = Path(tempfile.gettempdir()) / "easyfn-bench-llama"
    if not (folder / "model.safetensors").exists():
        code = (
            "import torch; from transformers import LlamaConfig, LlamaForCausalLM; torch.manual_seed(0);"
            f"LlamaForCausalLM(LlamaConfig(**{SHAPE!r})).save_pretrained({str(folder)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def torch_case(words: list[str], folder: Path):
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    kind, numbers = words[0], [int(w) for w in words[1:] if w.isdigit()]
    if kind == "load":

        def load():
            from safetensors.numpy import load_file

            return load_file(folder / "model.safetensors")

        return load
    model = LlamaForCausalLM.from_pretrained(folder)
    batch, length = numbers[:2]
    ids = torch.randint(0, 32000, (batch, length))
    if kind.startswith(("forward", "prefill")):
        model.eval()

        def forward():
            with torch.no_grad():
                return model(ids).logits

        return forward
    if kind.startswith("decode"):
        new = numbers[2]
        model.eval()
        model.generation_config.eos_token_id = None
        return lambda: model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def train():
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return train


def easyfn_case(words: list[str], folder: Path):
    import equinox as eqx
    import jax
    import numpy as np
    import optax

    import easyfn as ef

    kind, numbers = words[0], [int(w) for w in words[1:] if w.isdigit()]
    dtype = words[-1] if words[-1] in ("float32", "bfloat16") else "float32"
    if kind == "load":
        return lambda: jax.block_until_ready(ef.load(folder, progress=False))
    model = ef.load(folder, progress=False)
    batch, length = numbers[:2]
    ids = jax.numpy.asarray(np.random.default_rng(0).integers(0, 32000, (batch, length)))
    if "8bit" in kind or "nf4" in kind:
        model = ef.quantize(model, "8bit" if "8bit" in kind else "nf4")
    if kind.startswith(("forward", "prefill")):
        model = ef.cast(model, dtype)
        run = jax.jit(lambda m, ids: ef.forward(m, ids).logits)
        return lambda: run(model, ids).block_until_ready()
    if kind.startswith("decode"):
        model = ef.cast(model, dtype)
        return lambda: ef.generate(
            model,
            ids,
            max_new_tokens=numbers[2],
            min_new_tokens=numbers[2],
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
        ).sequences.block_until_ready()
    if kind == "lora":
        model = ef.apply_lora(model, "all-linear", rank=8, alpha=16, key=jax.random.key(0))
    params, frozen = eqx.partition(model, ef.trainable(model))
    optimizer = optax.adamw(1e-4)

    def step(params, state, frozen, ids):
        def loss(params):
            return ef.compute_loss(ef.cast(eqx.combine(params, frozen), dtype), {"input_ids": ids})[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    box = [params, optimizer.init(params)]

    def train():
        box[0], box[1], value = step(box[0], box[1], frozen, ids)
        return float(value)

    return train


def serve(side: str) -> None:
    """Reads one command a line: `prepare CASE` or `sample`; answers seconds."""
    run = None
    for line in sys.stdin:
        words = line.split()
        began = time.perf_counter()
        if words[0] == "prepare":
            run = (torch_case if side == "torch" else easyfn_case)(words[1:], checkpoint())
            run()
        else:
            run()
        print(json.dumps(time.perf_counter() - began), flush=True)


class Side:
    """A process that gives samples; of the sources in `source`, or of what is installed."""

    def __init__(self, name: str, script: str = __file__, source: Path | None = None) -> None:
        self.name = name
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "JAX_PLATFORMS": "cpu"}
        if source is not None:
            environment["PYTHONPATH"] = str(source)
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, line: str) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()


def interleaved(case: str, rounds: int) -> dict[str, float]:
    sides = [Side("torch"), Side("easyfn")]
    first = {s.name: s.ask(f"prepare {case}") for s in sides}
    samples: dict[str, list[float]] = {s.name: [] for s in sides}
    for n in range(rounds):
        for side in sides if n % 2 == 0 else sides[::-1]:
            samples[side.name].append(side.ask("sample"))
    for side in sides:
        side.stop()
    paired = statistics.median(b / a for a, b in zip(samples["torch"], samples["easyfn"], strict=True))
    ours, theirs = statistics.median(samples["easyfn"]), statistics.median(samples["torch"])
    return {"torch": theirs, "easyfn": ours, "ratio": ours / theirs, "paired": paired, "first": first["easyfn"]}


def import_time() -> float:
    """`import easyfn` over `import jax, equinox, optax`: the median of the ratios of five pairs of fresh processes.

    A package that pip installs has its byte code; a checkout may not, and would be compiled anew every time.
    """
    source = Path(__file__).parent.parent / "src"
    subprocess.run([sys.executable, "-m", "compileall", "-q", source], check=True)

    def once(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    return statistics.median(once("import easyfn") / once("import jax, equinox, optax") for _ in range(5))


def compile_growth() -> dict[int, float]:
    """Seconds to trace and compile a training step of a stacked model, by depth."""
    code = """
import sys, time, jax, easyfn as ef
n = int(sys.argv[1])
config = ef.models.LlamaConfig(vocab_size=1000, hidden_size=256, intermediate_size=704, num_hidden_layers=n,
                               num_attention_heads=8, num_key_value_heads=4)
model = ef.stack(ef.abstract(config))
ids = jax.ShapeDtypeStruct((2, 128), "int32")
began = time.perf_counter()
jax.jit(jax.grad(lambda m, ids: ef.compute_loss(m, {"input_ids": ids})[0])).lower(model, ids).compile()
print(time.perf_counter() - began)
"""
    run = lambda n: float(
        subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True, check=True).stdout
    )
    return {n: min(run(n) for _ in range(2)) for n in (4, 32)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["forward", "decode", "train", "lora", "load", "import", "compile"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    checkpoint()
    print("| case | torch s | easyfn s | ratio | paired ratio | first call s |\n|---|---|---|---|---|---|", flush=True)
    for what in args.what:
        if what == "import":
            print(f"| import, over jax + equinox + optax | | | | {import_time():.2f} | |", flush=True)
        elif what == "compile":
            took = compile_growth()
            print(
                f"| compile, 32 layers over 4, stacked | {took[4]:.1f} | {took[32]:.1f} | {took[32] / took[4]:.2f} | | |",
                flush=True,
            )
        else:
            for case in CASES.get(what, [what.replace(",", " ")]):
                r = interleaved(case, args.rounds)
                numbers = (
                    f"{r['torch']:.3f} | {r['easyfn']:.3f} | {r['ratio']:.2f} | {r['paired']:.2f} | {r['first']:.1f}"
                )
                print(f"| {case} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
