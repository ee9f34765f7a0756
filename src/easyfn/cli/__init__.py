"""The library for the shell: `show`, `generate`, `quantize`, `convert`, `pretrain`, `finetune`, ..., `plan`, `serve`, `demo`.
Public names only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .checked import Parser, Wrong, count, dtype, free, method, positive, share, source, stoppable, text_file, whole
from .parts import extra as extra, save, tell, tokenizer_of as tokenizer_of
from .together import add_options, joined, places


def dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", type=dtype, help="float32, bfloat16, float16 (default: as stored)")


def show(args: argparse.Namespace) -> None:
    import easyfn as ef

    what = Path(args.checkpoint)
    tell(ef.show(ef.abstract(args.checkpoint) if args.abstract or what.suffix == ".json" else _load(args)))


def _load(args: argparse.Namespace) -> Any:
    import easyfn as ef

    quantize = getattr(args, "quantize", None)
    return ef.load(args.checkpoint, dtype=args.dtype, quantize=quantize, **places(args))


def generate(args: argparse.Namespace) -> None:
    if bool(args.prompt) == bool(args.ids):
        raise Wrong("give a prompt, or --ids, and not both")
    if args.ids and not all(part.strip().isdigit() for part in args.ids.split(",")):
        raise Wrong(f"--ids are token ids with commas between them, not {args.ids!r}")
    import jax
    import numpy as np

    import easyfn as ef

    model = _load(args)
    if args.adapter:
        model = ef.load_adapter(model, args.adapter)
    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens}
    if args.temperature > 0:
        options |= {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    else:
        options |= {"do_sample": False}
    key = jax.random.key(args.seed)
    if args.ids:
        ids = np.array([[int(i) for i in args.ids.split(",")]])
        print(*np.asarray(ef.generate(model, ids, key=key, **options).sequences)[0], sep=",")
        return
    tokenizer = tokenizer_of(args.checkpoint)
    ids = tokenizer.encode(args.prompt).ids
    shown = ""
    print(args.prompt, end="", flush=True)
    new: list[int] = []
    for token in ef.stream(model, np.array([ids]), key=key, **options):
        new.append(int(np.asarray(token).reshape(-1)[0]))
        text = tokenizer.decode(new)
        if not text.endswith("\ufffd"):  # half a character: wait for the rest
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()


def quantize(args: argparse.Namespace) -> None:
    free(args.out, args.force, args.checkpoint)
    import easyfn as ef

    cfg = ef.QuantConfig(args.method, args.group_size, refine=args.refine, calibration=args.calibration)
    if args.calibrate:
        from .finetune import blocks

        rows = blocks(tokenizer_of(args.checkpoint), Path(args.calibrate).read_text(), 128)[: args.rows]
        model = ef.calibrate(ef.load(args.checkpoint), [rows[i : i + 8] for i in range(0, len(rows), 8)], cfg)
    else:
        model = ef.load(args.checkpoint, quantize=cfg, **places(args))
    save(model, args.out, args.checkpoint)
    print(f"{args.out}: {ef.num_bytes(model) / 1e6:.1f} MB in memory")


def convert(args: argparse.Namespace) -> None:
    free(args.out, args.force, args.checkpoint, args.adapter)
    if args.kind and not args.out.endswith(".gguf"):
        raise Wrong(f"--kind is of a .gguf file, and {args.out} is a folder")
    import easyfn as ef

    model = _load(args)
    if args.adapter:
        model = ef.merge_lora(ef.load_adapter(model, args.adapter))
    more = {"kind": args.kind} if args.kind else {"max_shard_size": args.max_shard_size}
    save(model, args.out, args.checkpoint, **more)
    print(args.out)


def run_recipe(args: argparse.Namespace) -> None:
    from .running import run

    run(args)


def run_demo(args: argparse.Namespace) -> None:
    from .demo import run

    run(args.checkpoint, args.text, Path(args.out), args.steps)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `easyfn` command."""
    parser = Parser(prog="easyfn", description="Hugging Face checkpoints as immutable JAX pytrees.")
    parser.add_argument("--version", action="store_true", help="print it, and nothing else")
    add_options(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    p = commands.add_parser("show", help="a table of a checkpoint's weights")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("--abstract", action="store_true", help="from the config alone, without reading weights")
    p.add_argument("--quantize", type=method, help="as it would be quantized with this method")
    dtype_option(p)
    p.set_defaults(run=show)

    p = commands.add_parser("generate", help="text from a prompt")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("prompt", nargs="?", default="", help="the text to go on from")
    p.add_argument("--ids", help="token ids, comma separated, instead of text")
    p.add_argument("--max-new-tokens", type=whole, default=64, help="of the answer")
    p.add_argument("--temperature", type=positive, default=0.0, help="0 is greedy")
    p.add_argument("--top-p", type=share, default=1.0, help="the likeliest tokens of this share")
    p.add_argument("--seed", type=count, default=0, help="of what is drawn")
    p.add_argument("--adapter", type=source, help="a folder with a PEFT adapter")
    p.add_argument("--quantize", type=method, help="quantize while loading: 8bit, nf4")
    dtype_option(p)
    p.set_defaults(run=generate)

    p = commands.add_parser("quantize", help="a checkpoint in fewer bits")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("out", help="a new folder, or file.gguf")
    p.add_argument(
        "--method", type=method, default="nf4", help="nf4, int4, int8, fp8, mxfp4, ...: an unknown one lists them all"
    )
    p.add_argument("--group-size", type=whole, help="entries that share a scale (default: the method's own)")
    p.add_argument("--refine", help="hqq: better zeros for integer codes, without data")
    p.add_argument(
        "--calibrate", type=text_file, metavar="TEXT_FILE", help="choose the codes on this text: int4, a4q, a8bit"
    )
    p.add_argument("--calibration", help="gptq, awq or smooth (default: what suits the method)")
    p.add_argument("--rows", type=whole, default=128, help="rows of 128 tokens to calibrate on")
    p.add_argument("--force", action="store_true", help="put it in the place of what is there")
    p.set_defaults(run=quantize)

    p = commands.add_parser("convert", help="another dtype, other shards, an adapter merged; to or from .gguf")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("out", help="a new folder, or file.gguf")
    p.add_argument("--adapter", type=source, help="a folder with a PEFT adapter, to be merged")
    p.add_argument("--max-shard-size", default="5GB", help="of a file")
    p.add_argument(
        "--kind", choices=["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q8_0"], help="of a .gguf: round matrices to it"
    )
    dtype_option(p)
    p.add_argument("--force", action="store_true", help="put it in the place of what is there")
    p.set_defaults(run=convert)

    from .recipe import KINDS, add as add_recipe

    for kind in KINDS:
        add_recipe(commands, kind, run_recipe)

    from .chat import add as add_chat
    from .doctor import add as add_doctor
    from .judge import add as add_perplexity
    from .new_family import add as add_new_family
    from .plan import add as add_plan
    from .serve import add as add_serve

    add_chat(commands)
    add_doctor(commands)
    add_new_family(commands)
    add_perplexity(commands, whole)
    add_plan(commands)
    add_serve(commands)

    p = commands.add_parser("demo", help="the main job on a checkpoint, step by step")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a .gguf file")
    p.add_argument("text", type=text_file, help="a text file to learn")
    p.add_argument("--out", default="out", help="the folder of what it writes")
    p.add_argument("--steps", type=whole, default=120, help="of training")
    p.set_defaults(run=run_demo)

    with stoppable("easyfn"):
        args = parser.parse_args(arguments)
    if args.version:
        from .doctor import version

        print(f"easyfn {version('easyfn')}")
        return
    if args.command is None:
        parser.print_help()
        return
    try:
        with stoppable(f"easyfn {args.command}"), joined(args):
            args.run(args)
    except Wrong as error:
        print(f"easyfn {args.command}: {error}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, TypeError, OSError, KeyError) as error:
        sys.exit(f"easyfn {args.command}: {error}")
