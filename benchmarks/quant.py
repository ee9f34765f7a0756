"""Weight formats: decode and prefill beside our own float32 and transformers' float32, interleaved; ratios.

    python benchmarks/quant.py [8bit a8bit int4 ...] [--rounds 7] [--cases decode1 decode8 prefill]
    python benchmarks/quant.py --accelerator [8bit int4 nf4 ...]       # tokens per second beside bfloat16

On CPU, one process is torch and one is easyfn, each with all of its models; a round takes one sample of each, the order turning.
Printed are the medians of the ratios within a round. `+head` after a method quantizes the head too, `+bf16` computes in
bfloat16.

With an accelerator: a random Llama of a billion parameters in bfloat16; for each format the tokens per second of decoding at
batch 1, 4 and 16, a prefill, and a step of QLoRA, over those of bfloat16; and the bytes of the weights that each token reads
over the bandwidth of a plain copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

from compare import Side, checkpoint, torch_case

CASES = {"decode1": "decode 1 32 64", "decode8": "decode 8 32 64", "prefill": "prefill 1 512"}
METHODS = ["8bit", "8bit+head", "a8bit", "int4", "a4q", "a8q", "nf4", "8bit+bf16", "a8bit+bf16"]
BILLION = dict(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
)
SMALL = dict(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def formatted(model, method: str):
    """`model` as a word of the command line says."""
    import jax.numpy as jnp

    import easyfn as ef

    name, *more = method.split("+")
    if name not in ("float32", "bfloat16"):
        model = ef.quantize(
            model, ef.QuantConfig(name, pattern=["proj", "lm_head"] if "head" in more else "all-linear")
        )
    return ef.cast(model, jnp.bfloat16) if "bf16" in more or name == "bfloat16" else model


def runner(model, kind: str, batch: int, length: int, new: int = 0) -> Callable[[], object]:
    """One sample: a prefill, or a prompt and its continuation."""
    import jax
    import numpy as np

    import easyfn as ef

    ids = jax.numpy.asarray(np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length)))
    if kind == "prefill":
        forward = jax.jit(lambda m, ids: ef.forward(m, ids).logits)
        return lambda: forward(model, ids).block_until_ready()
    fixed = dict(max_new_tokens=new, min_new_tokens=new, eos_token_id=None, pad_token_id=0, do_sample=False)
    return lambda: ef.generate(model, ids, **fixed).sequences.block_until_ready()


def serve(side: str) -> None:
    """Reads `prepare METHOD CASE...` or `sample METHOD`, one a line; answers seconds."""
    runs: dict[str, Callable[[], object]] = {}
    dense = None
    for line in sys.stdin:
        order, method, *words = line.split()
        if order == "prepare":
            kind, *numbers = words
            if side == "torch":
                runs[method] = torch_case(words, checkpoint())
            else:
                import easyfn as ef

                dense = dense or ef.load(checkpoint(), progress=False)
                runs[method] = runner(formatted(dense, method), kind, *map(int, numbers))
            runs[method]()
        began = time.perf_counter()
        runs[method]()
        print(json.dumps(time.perf_counter() - began), flush=True)


def interleaved(case: str, methods: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """By method: the medians over rounds of its time over our float32's, and over transformers'."""
    theirs, ours = Side("torch", __file__), Side("easyfn", __file__)
    sides = [(theirs, "torch"), *((ours, m) for m in ("float32", *methods))]
    for side, method in sides:
        side.ask(f"prepare {method} {case}")
    samples: dict[str, list[float]] = {method: [] for _, method in sides}
    for n in range(rounds):
        for side, method in sides if n % 2 == 0 else sides[::-1]:
            samples[method].append(side.ask(f"sample {method}"))
    theirs.stop()
    ours.stop()
    over = lambda method, base: statistics.median(a / b for a, b in zip(samples[method], samples[base], strict=True))
    return {m: (over(m, "float32"), over(m, "torch")) for m in ("float32", *methods)}


def on_cpu(cases: list[str], methods: list[str], rounds: int) -> None:
    checkpoint()
    print("| case | format | of our float32 | of transformers' float32 |\n|---|---|---|---|", flush=True)
    for case in cases:
        for method, (own, torch) in interleaved(CASES[case], methods, rounds).items():
            print(f"| {CASES[case]} | {method} | {own:.2f} | {torch:.2f} |", flush=True)


def best(run: Callable[[], object], rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def on_accelerator(methods: list[str], rounds: int, shape: dict[str, int], new: int = 64, prompt: int = 512) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    import easyfn as ef

    config = ef.models.LlamaConfig(**shape)
    dense = jax.jit(lambda: ef.stack(ef.init(config, key=jax.random.key(0), dtype=jnp.bfloat16)))()
    block = jnp.ones(1 << 26 if shape is BILLION else 1 << 20, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    bandwidth = 2 * block.nbytes / best(lambda: copy(block).block_until_ready(), rounds)
    batch = {"input_ids": jnp.ones((4, prompt), jnp.int32)}
    base: dict[str, float] = {}
    print(f"{jax.devices()[0].device_kind}: a copy moves {bandwidth / 1e9:.0f} GB/s\n")
    print(
        "| format | GB | decode 1, tok/s (x bf16, of bandwidth) | decode 4 | decode 16 | prefill, s | QLoRA step, s |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for method in ["bfloat16", *methods]:
        model = jax.block_until_ready(formatted(dense, method))
        table = ef.num_bytes(model.model.embed_tokens)
        weights = ef.num_bytes(model) - (0 if config.tie_word_embeddings else table)
        row = [method, f"{ef.num_bytes(model) / 1e9:.2f}"]

        def relative(name: str, value: float) -> float:
            return value / base.setdefault(name, value)

        for size in (1, 4, 16):
            # The difference of two lengths is decoding alone: no prefill, no dispatch of the call.
            long = best(runner(model, "decode", size, 32, 2 * new), rounds)
            short = best(runner(model, "decode", size, 32, new), rounds)
            each = (long - short) / new
            part = f", {weights / each / bandwidth:.2f}" if size == 1 else ""
            row.append(f"{size / each:.0f} ({relative(f'decode{size}', size / each):.2f}{part})")
        taken = best(runner(model, "prefill", 1, 4 * prompt), rounds)
        row.append(f"{taken:.4f} ({relative('prefill', taken):.2f})")

        adapted = ef.apply_lora(model, rank=16, key=jax.random.key(1))
        params, rest = ef.split(adapted, ef.trainable(adapted))
        optimizer = optax.adamw(1e-4)
        state = optimizer.init(params)

        @jax.jit
        def step(params, state, rest, optimizer=optimizer):
            loss = lambda p: ef.compute_loss(ef.combine(p, rest), batch)[0]
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        args = (params, state, rest)
        taken = best(lambda args=args, step=step: jax.block_until_ready(step(*args)), rounds)
        row.append(f"{taken:.4f} ({relative('step', taken):.2f})")
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", help=f"by default {' '.join(METHODS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--accelerator", action="store_true")
    parser.add_argument("--small", action="store_true", help="with --accelerator: a tiny model, to see that it runs")
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    if args.accelerator:
        methods = args.methods or ["8bit", "a8bit", "int4", "a4q", "a8q", "nf4", "fp8", "mxfp4"]
        shape = SMALL if args.small else BILLION
        return on_accelerator(methods, args.rounds, shape, *((4, 16) if args.small else ()))
    on_cpu(args.cases, args.methods or METHODS, args.rounds)


if __name__ == "__main__":
    main()
