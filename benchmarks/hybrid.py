"""A hybrid of gated delta nets and attention (Qwen3.5's shape) beside transformers eager: a prompt, and tokens after it.

    python benchmarks/hybrid.py [--rounds 5] [--length 2048]

Same checkpoint, one process per side, interleaved as in `compare.py`. Beside each figure is its limit: the products of a
prompt over the float32 peak that a plain product of matrices reaches here, the bytes of a token's weights over the
bandwidth of a plain copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compare import Side

SHAPE = dict(
    vocab_size=32000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    linear_num_key_heads=8,
    linear_num_value_heads=16,
    max_position_embeddings=8192,
)
DECODED = 32


def checkpoint() -> Path:
    folder = Path(tempfile.gettempdir()) / "easyfn-bench-hybrid"
    if not (folder / "model.safetensors").exists():
        code = (
            "import torch; from transformers import Qwen3_5TextConfig, Qwen3_5ForCausalLM; torch.manual_seed(0);"
            f"Qwen3_5ForCausalLM(Qwen3_5TextConfig(**{SHAPE!r})).save_pretrained({str(folder)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def torch_case(kind: str, length: int) -> Any:
    import torch
    from transformers import Qwen3_5ForCausalLM

    torch.set_num_threads(2)
    model = Qwen3_5ForCausalLM.from_pretrained(checkpoint(), attn_implementation="eager").eval()
    ids = torch.randint(3, 32000, (1, length), generator=torch.Generator().manual_seed(0))
    model.generation_config.eos_token_id = None
    if kind == "prefill":
        return torch.no_grad()(lambda: model(ids, logits_to_keep=1).logits)
    options = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def easyfn_case(kind: str, length: int) -> Any:
    import jax
    import numpy as np

    import easyfn as ef

    model = ef.load(checkpoint(), progress=False)
    ids = np.random.default_rng(0).integers(3, 32000, (1, length))
    if kind == "prefill":
        forward = jax.jit(lambda m, ids: ef.forward(m, ids, logits_to_keep=1).logits)
        return lambda: jax.block_until_ready(forward(model, ids))
    return lambda: jax.block_until_ready(
        ef.generate(model, ids, max_new_tokens=DECODED, do_sample=False, eos_token_id=-1).sequences
    )


def serve(side: str) -> None:
    run: Any = None
    for line in sys.stdin:
        words = line.split()
        began = time.perf_counter()
        if words[0] == "prepare":
            run = (torch_case if side == "torch" else easyfn_case)(words[1], int(words[2]))
        run()
        print(json.dumps(time.perf_counter() - began), flush=True)


def limits() -> tuple[float, float]:
    """FLOP and bytes a second: a product of matrices of 1024, a copy of 256 MiB."""
    import numpy as np

    def best(what: Any) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            what()
            took.append(time.perf_counter() - began)
        return min(took)

    a = np.ones((1024, 1024), np.float32)
    big = np.ones(2**26, np.float32)
    return 2 * 1024**3 / best(lambda: a @ a), 2 * big.nbytes / best(big.copy)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    size = (checkpoint() / "model.safetensors").stat().st_size
    embedded = 4 * SHAPE["vocab_size"] * SHAPE["hidden_size"]
    flops, bandwidth = limits()
    print("| case | torch s | easyfn s | ratio | paired ratio | limit s |\n|---|---|---|---|---|---|", flush=True)
    # A prompt multiplies every weight but the two tables by every token; a token reads all but the embeddings.
    least = {
        "prefill": 2 * (size - 2 * embedded) / 4 * args.length / flops,
        "decode": DECODED * (size - embedded) / bandwidth,
    }
    for kind in ("prefill", "decode"):
        length = args.length if kind == "prefill" else 16
        sides = {name: Side(name, __file__) for name in ("torch", "easyfn")}
        for side in sides.values():
            side.ask(f"prepare {kind} {length}")
        found: dict[str, list[float]] = {name: [] for name in sides}
        for n in range(args.rounds):
            for name in list(sides)[:: 1 if n % 2 == 0 else -1]:
                found[name].append(sides[name].ask("sample"))
        for side in sides.values():
            side.stop()
        theirs, ours = (statistics.median(found[name]) for name in ("torch", "easyfn"))
        paired = statistics.median(b / a for a, b in zip(found["torch"], found["easyfn"], strict=True))
        label = f"{kind} 1x{length}" + ("" if kind == "prefill" else f", {DECODED} tokens")
        print(f"| {label} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} | {paired:.2f} | {least[kind]:.3f} |")


if __name__ == "__main__":
    main()
