"""`easyfn perplexity`: how well a checkpoint predicts a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .checked import dtype, method, source, text_file
from .parts import tokenizer_of


def run(args: argparse.Namespace) -> None:
    import easyfn as ef

    model = ef.load(args.checkpoint, dtype=args.dtype, quantize=args.quantize)
    if args.adapter:
        model = ef.load_adapter(model, args.adapter)
    text = Path(args.text).read_text("utf-8")
    ids = tokenizer_of(args.checkpoint).encode(text).ids
    found = ef.perplexity(
        model,
        ids,
        length=args.length,
        stride=args.stride,
        num_bytes=len(text.encode()),
        batch_size=args.batch_size,
    )
    print(
        json.dumps(found) if args.json else "\n".join(f"{name.ljust(16)}{value:.6g}" for name, value in found.items())
    )


def add(commands: Any, whole: Any) -> None:
    """The parser of the command; `whole` reads a number of at least one."""
    p = commands.add_parser("perplexity", help="how well it predicts a text: nats a token, bits a byte")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("text", type=text_file, help="a text file")
    p.add_argument("--length", type=whole, default=512, help="tokens of a window")
    p.add_argument("--stride", type=whole, help="how far a window moves (default: half of it)")
    p.add_argument("--batch-size", type=whole, default=8, help="windows at once")
    p.add_argument("--adapter", type=source, help="a folder with a PEFT adapter")
    p.add_argument("--quantize", type=method, help="quantize while loading: 8bit, nf4")
    p.add_argument("--dtype", type=dtype, help="float32, bfloat16, float16 (default: as stored)")
    p.add_argument("--json", action="store_true", help="as one line of JSON")
    p.set_defaults(run=run)
