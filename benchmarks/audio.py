"""Whisper (tiny's shape) beside transformers eager: the features of 30 seconds of sound, the encoder, and 100 tokens.

    python benchmarks/audio.py [--rounds 5] [features encode transcribe]

Same checkpoint, one process per side, interleaved as in `compare.py`; ratios only.
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

SHAPE = {"decoder_start_token_id": 50258, "pad_token_id": 50257, "bos_token_id": 50257, "eos_token_id": 50257}
TOKENS = 100
CASES = ("features", "encode", "transcribe")


def checkpoint() -> Path:
    folder = Path(tempfile.gettempdir()) / "easyfn-bench-whisper"
    if not (folder / "model.safetensors").exists():
        code = (
            "import torch; from transformers import WhisperConfig, WhisperForConditionalGeneration as W;"
            f"torch.manual_seed(0); W(WhisperConfig(**{SHAPE!r})).save_pretrained({str(folder)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def sound() -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal(480000, np.float32) * 0.1


def torch_case(kind: str) -> Any:
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.set_num_threads(2)
    extractor, wave = WhisperFeatureExtractor(), sound()
    features = lambda: extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    if kind == "features":
        return features
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint(), attn_implementation="eager").eval()
    if kind == "encode":
        given = features()
        return torch.no_grad()(lambda: model.model.encoder(given).last_hidden_state)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    return lambda: model.generate(features(), **options)


def easyfn_case(kind: str) -> Any:
    import jax

    import easyfn as ef

    wave = sound()[None]
    log_mel = jax.jit(ef.log_mel)
    if kind == "features":
        return lambda: jax.block_until_ready(log_mel(wave))
    model = ef.load(checkpoint(), progress=False)
    if kind == "encode":
        features = log_mel(wave)
        encode = jax.jit(lambda m, x: ef.encode(m, input_features=x).last_hidden_state)
        return lambda: jax.block_until_ready(encode(model, features))
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": -1}
    return lambda: jax.block_until_ready(ef.generate(model, log_mel(wave), **options).sequences)


def serve(side: str) -> None:
    run: Any = None
    for line in sys.stdin:
        words = line.split()
        if words[0] == "prepare":
            run = (torch_case if side == "torch" else easyfn_case)(words[1])
            run()  # compiles
        began = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - began), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve)
    checkpoint()
    print("| case | easyfn of eager | paired |\n|---|---|---|", flush=True)
    for kind in args.cases:
        sides = {name: Side(name, __file__) for name in ("torch", "easyfn")}
        for side in sides.values():
            side.ask(f"prepare {kind}")
        found: dict[str, list[float]] = {name: [] for name in sides}
        for n in range(args.rounds):
            for name in list(sides)[:: 1 if n % 2 == 0 else -1]:
                found[name].append(sides[name].ask("sample"))
        for side in sides.values():
            side.stop()
        theirs, ours = (statistics.median(found[name]) for name in ("torch", "easyfn"))
        paired = statistics.median(b / a for a, b in zip(found["torch"], found["easyfn"], strict=True))
        print(f"| {kind} | {ours / theirs:.2f} | {paired:.2f} |", flush=True)


if __name__ == "__main__":
    main()
