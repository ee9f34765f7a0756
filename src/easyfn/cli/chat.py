"""`easyfn chat`: talk to a checkpoint in a terminal; /reset forgets, /save writes the chat down, /quit ends."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .checked import Wrong, count, dtype, method, positive, share, source, whole
from .parts import tokenizer_of

HELP = "/reset forgets what was said, /save FILE writes it down as JSON, /quit ends"


def run(args: argparse.Namespace) -> None:
    import easyfn as ef

    template = ef.chat_template(args.checkpoint, file=args.chat_template)
    if template is None:
        raise Wrong(f"{args.checkpoint} has no chat template: give --chat-template FILE.jinja, or easyfn generate")
    tokenizer = tokenizer_of(args.checkpoint)
    model = ef.load(args.checkpoint, dtype=args.dtype, quantize=args.quantize)
    if args.adapter:
        model = ef.load_adapter(model, args.adapter)
    start = [{"role": "system", "content": args.system}] if args.system else []
    said, turn = list(start), 0
    print(HELP)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        if word == "/reset":
            said = list(start)
        elif word == "/save":
            file = Path(rest.strip() or "chat.json")
            file.write_text(json.dumps({"messages": said}, ensure_ascii=False, indent=2) + "\n", "utf-8")
            print(f"{file}: {len(said)} messages")
        elif word.startswith("/"):
            print(HELP)
        elif line:
            said.append({"role": "user", "content": line})
            said.append({"role": "assistant", "content": _answer(model, tokenizer, template(said), args, turn)})
            turn += 1


def _answer(model: Any, tokenizer: Any, text: str, args: argparse.Namespace, turn: int) -> str:
    """The answer, printed as it comes; Ctrl-C ends it, and keeps what was said."""
    import jax
    import numpy as np

    import easyfn as ef

    options: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        key = jax.random.fold_in(jax.random.key(args.seed), turn)
        options = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "key": key}
    ids = np.array([tokenizer.encode(text, add_special_tokens=False).ids])
    parts: list[str] = []
    try:
        for texts in ef.stream_text(model, ids, tokenizer, max_new_tokens=args.max_new_tokens, **options):
            parts.append(texts[0])
            print(parts[-1], end="", flush=True)
    except KeyboardInterrupt:
        pass
    print()
    return "".join(parts)


def add(commands: Any) -> None:
    """The parser of the command."""
    p = commands.add_parser("chat", help="talk to a checkpoint in the terminal", description=f"In the chat {HELP}.")
    p.add_argument("checkpoint", type=source, help="a folder or a .gguf file, with a chat template")
    p.add_argument("--system", help="what the model is told first")
    p.add_argument("--chat-template", metavar="FILE", help="a .jinja file (default: the checkpoint's)")
    p.add_argument("--max-new-tokens", type=whole, default=256, help="of an answer")
    p.add_argument("--temperature", type=positive, default=0.0, help="0 is greedy")
    p.add_argument("--top-p", type=share, default=1.0, help="the likeliest tokens of this share")
    p.add_argument("--seed", type=count, default=0, help="of what is drawn")
    p.add_argument("--adapter", type=source, help="a folder with a PEFT adapter")
    p.add_argument("--quantize", type=method, help="quantize while loading: 8bit, nf4")
    p.add_argument("--dtype", type=dtype, help="float32, bfloat16, float16 (default: as stored)")
    p.set_defaults(run=run)
