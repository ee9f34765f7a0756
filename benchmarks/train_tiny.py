"""Trains the small Llama of `examples/tiny` with easyfn, on text that every machine has: Python's own standard library.

    python benchmarks/train_tiny.py --minutes 20

Source files and their docstrings, and the language reference that `help()` shows; one file in twenty is held out. The
held-out loss (nats per token and per byte) is written to `examples/tiny/training.json` with the versions used.
"""

from __future__ import annotations

import argparse
import json
import platform
import sysconfig
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import easyfn as ef

OUT = Path(__file__).parent.parent / "examples" / "tiny"
SKIP = (
    "site-packages",
    "dist-packages",
    "/test/",
    "/tests/",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings/",
    "msilib",
)
BOS, EOS = "<s>", "</s>"


def texts() -> tuple[list[str], list[str]]:
    """The texts to train on and those held out, by the hash of their path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train, held = [], []
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(root))
        if any(s in str(path) for s in SKIP) or path.stat().st_size > 400_000:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        (held if zlib.crc32(name.encode()) % 20 == 0 else train).append(text)
    if topics := root / "pydoc_data" / "topics.py":
        train.append(topics.read_text(encoding="utf-8"))
    return train, held


def tokenizer_for(train: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(train, trainer)
    return tokenizer


def tokens_of(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    return np.concatenate([np.array([bos, *e.ids, eos], np.int32) for e in tokenizer.encode_batch(documents)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    train, held = texts()
    tokenizer = tokenizer_for(train, 1024)
    ids, held_ids = tokens_of(tokenizer, train), tokens_of(tokenizer, held)
    held_bytes = sum(len(t.encode()) for t in held)
    print(
        f"{len(train)} files, {len(ids) / 1e6:.2f} M tokens; held out {len(held)} files, {len(held_ids) / 1e6:.2f} M tokens"
    )

    config = ef.models.LlamaConfig(
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        extra=ef.Frozen(bos_token_id=0, eos_token_id=1, pad_token_id=1, architectures=["LlamaForCausalLM"]),
        generation=ef.Frozen(bos_token_id=0, eos_token_id=1, pad_token_id=1),
    )
    model = ef.stack(ef.init(config, key=jax.random.key(0)))
    progress = 0.0  # of the time, which drives the schedule: the run ends when the minutes do

    def rate_at(progress: jax.Array) -> jax.Array:
        warm = jnp.minimum(progress / 0.02, 1.0)
        return args.rate * warm * (0.05 + 0.95 * 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98), optax.add_decayed_weights(0.05)
    )

    def step(model, state, batch, progress):
        (loss, _), grads = jax.value_and_grad(lambda m: ef.compute_loss(m, {"input_ids": batch}), has_aux=True)(model)
        updates, state = optimizer.update(grads, state, model)
        updates = jax.tree.map(lambda u: -rate_at(progress) * u, updates)
        return optax.apply_updates(model, updates), state, loss

    step = jax.jit(step, donate_argnums=(0, 1))
    evaluate = jax.jit(lambda m, b: ef.compute_loss(m, {"input_ids": b})[0])
    held_batches = held_ids[: len(held_ids) // (32 * args.length) * 32 * args.length].reshape(-1, 32, args.length)

    def held_loss(model, batches) -> float:
        return float(np.mean([float(evaluate(model, b)) for b in batches]))

    state, rng, losses, n = optimizer.init(model), np.random.default_rng(0), [], 0
    began = time.time()
    while progress < 1.0:
        starts = rng.integers(0, len(ids) - args.length, args.batch)
        batch = np.stack([ids[s : s + args.length] for s in starts])
        model, state, loss = step(model, state, batch, jnp.float32(progress))
        losses.append(float(loss))
        n += 1
        progress = (time.time() - began) / (60 * args.minutes)
        if n % 200 == 0:
            held = held_loss(model, held_batches[:4])
            speed = n * batch.size / (time.time() - began)
            print(
                f"step {n}: loss {np.mean(losses[-200:]):.3f}, held out {held:.3f}, {speed:.0f} tokens/s",
                flush=True,
            )

    final = held_loss(model, held_batches)
    model = ef.cast(model, jnp.bfloat16)
    rounded = held_loss(ef.float32(model), held_batches)
    per_byte = rounded * len(held_ids) / held_bytes
    print(
        f"held-out loss {final:.4f} nats per token, {rounded:.4f} after rounding to bfloat16, {per_byte:.4f} per byte"
    )
    ef.save(ef.unstack(model), args.out)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS},
            indent=2,
        )
    )
    held_ids[: 64 * 256].astype(np.uint16).tofile(args.out / "held_out.u16")
    record = {
        "held_out_loss": round(rounded, 4),
        "held_out_nats_per_byte": round(per_byte, 4),
        "held_out_tokens": int(held_batches.size),
        "steps": n,
        "tokens": n * args.batch * args.length,
        "minutes": args.minutes,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
