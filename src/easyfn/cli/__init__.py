"""The library for the shell: `easyfn show`, `generate`, `quantize`, `convert`, `finetune`, `plan`, `serve`, `demo`.
Public names only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .parts import extra as extra, tokenizer_of as tokenizer_of
from .together import add_options, is_first, joined, places


def dtype_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default: as stored)")


def show(args: argparse.Namespace) -> None:
    import easyfn as ef

    what = Path(args.checkpoint)
    print(ef.show(ef.abstract(args.checkpoint) if args.abstract or what.suffix == ".json" else _load(args)))


def _load(args: argparse.Namespace) -> Any:
    import jax.numpy as jnp

    import easyfn as ef

    dtype = jnp.dtype(args.dtype) if getattr(args, "dtype", None) else None
    return ef.load(args.checkpoint, dtype=dtype, quantize=getattr(args, "quantize", None), **places(args))


def generate(args: argparse.Namespace) -> None:
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
    import easyfn as ef

    cfg = ef.QuantConfig(args.method, args.group_size, refine=args.refine, calibration=args.calibration)
    if args.calibrate:
        from .finetune import blocks

        rows = blocks(tokenizer_of(args.checkpoint), Path(args.calibrate).read_text(), 128)[: args.rows]
        model = ef.calibrate(ef.load(args.checkpoint), [rows[i : i + 8] for i in range(0, len(rows), 8)], cfg)
    else:
        model = ef.load(args.checkpoint, quantize=cfg, **places(args))
    ef.save(model, args.out)
    _copy_tokenizer(args.checkpoint, args.out)
    print(f"{args.out}: {ef.num_bytes(model) / 1e6:.1f} MB in memory")


def convert(args: argparse.Namespace) -> None:
    import easyfn as ef

    model = _load(args)
    if args.adapter:
        model = ef.merge_lora(ef.load_adapter(model, args.adapter))
    if args.out.endswith(".gguf"):
        ef.save_gguf(model, args.out, metadata=_tokenizer_metadata(args.checkpoint, model.config.vocab_size))
    else:
        ef.save(model, args.out, max_shard_size=args.max_shard_size)
        _copy_tokenizer(args.checkpoint, args.out)
    print(args.out)


def _tokenizer_metadata(source: str, vocab_size: int) -> dict[str, Any]:
    """The tokenizer of a checkpoint as the metadata of a `.gguf` file."""
    import easyfn as ef

    if source.endswith(".gguf"):
        return {k: v for k, v in ef.read_gguf(source).metadata.items() if k.startswith("tokenizer.")}
    path = Path(source) / "tokenizer.json"
    return ef.tokenizer_metadata(path.read_text("utf-8"), vocab_size=vocab_size) if path.is_file() else {}


def _copy_tokenizer(source: str, target: str) -> None:
    import shutil

    import easyfn as ef

    if source.endswith(".gguf"):
        try:
            ef.gguf_tokenizer(source).save(str(Path(target) / "tokenizer.json"))
        except (ImportError, ValueError) as error:
            print(f"easyfn: no tokenizer.json was written: {error}", file=sys.stderr)
        return
    for path in Path(source).glob("*token*.json") if Path(source).is_dir() and is_first() else ():
        shutil.copy(path, target)


def run_finetune(args: argparse.Namespace) -> None:
    import easyfn as ef

    from .finetune import tune

    model = _load(args)
    mesh = places(args).get("mesh")
    rows = 1 if mesh is None else mesh.shape["dp"] * mesh.shape["fsdp"]
    tuned, losses = tune(
        model,
        tokenizer_of(args.checkpoint),
        Path(args.text).read_text(),
        steps=args.steps,
        rank=args.rank,
        batch_size=-(-8 // rows) * rows,
        mesh=mesh,
    )
    ef.save_adapter(tuned, args.out)
    print(f"{args.out}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps")


def run_demo(args: argparse.Namespace) -> None:
    from .demo import run

    run(args.checkpoint, args.text, Path(args.out), args.steps)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `easyfn` command."""
    parser = argparse.ArgumentParser(prog="easyfn", description="Hugging Face checkpoints as immutable JAX pytrees.")
    add_options(parser)
    commands = parser.add_subparsers(dest="command", required=True)

    p = commands.add_parser("show", help="a table of a checkpoint's weights")
    p.add_argument("checkpoint", help="a folder, a hub id or a .gguf file")
    p.add_argument("--abstract", action="store_true", help="from the config alone, without reading weights")
    p.add_argument("--quantize", help="as it would be quantized with this method")
    dtype_option(p)
    p.set_defaults(run=show)

    p = commands.add_parser("generate", help="text from a prompt")
    p.add_argument("checkpoint")
    p.add_argument("prompt", nargs="?", default="")
    p.add_argument("--ids", help="token ids, comma separated, instead of text")
    p.add_argument("--max-new-tokens", type=int, default=64)
    p.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--adapter", help="a folder with a PEFT adapter")
    p.add_argument("--quantize", help="quantize while loading: 8bit, nf4")
    dtype_option(p)
    p.set_defaults(run=generate)

    p = commands.add_parser("quantize", help="a checkpoint in fewer bits")
    p.add_argument("checkpoint")
    p.add_argument("out")
    p.add_argument("--method", default="nf4", help="nf4, int4, int8, fp8, mxfp4, ...: an unknown one lists them all")
    p.add_argument("--group-size", type=int, help="entries that share a scale (default: the method's own)")
    p.add_argument("--refine", help="hqq: better zeros for integer codes, without data")
    p.add_argument("--calibrate", metavar="TEXT_FILE", help="choose the codes on this text: int4, a4q, a8bit")
    p.add_argument("--calibration", help="gptq, awq or smooth (default: what suits the method)")
    p.add_argument("--rows", type=int, default=128, help="rows of 128 tokens to calibrate on")
    p.set_defaults(run=quantize)

    p = commands.add_parser("convert", help="another dtype, other shards, an adapter merged; to or from .gguf")
    p.add_argument("checkpoint")
    p.add_argument("out")
    p.add_argument("--adapter")
    p.add_argument("--max-shard-size", default="5GB")
    dtype_option(p)
    p.set_defaults(run=convert)

    p = commands.add_parser("finetune", help="a LoRA adapter from a text file")
    p.add_argument("checkpoint")
    p.add_argument("text")
    p.add_argument("out")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--quantize", help="train on a quantized base: 8bit, nf4")
    dtype_option(p)
    p.set_defaults(run=run_finetune)

    from .plan import add as add_plan
    from .serve import add as add_serve

    add_plan(commands)
    add_serve(commands)

    p = commands.add_parser("demo", help="the main job on a checkpoint, step by step")
    p.add_argument("checkpoint")
    p.add_argument("text", help="a text file to learn")
    p.add_argument("--out", default="out")
    p.add_argument("--steps", type=int, default=120)
    p.set_defaults(run=run_demo)

    args = parser.parse_args(arguments)
    try:
        with joined(args):
            args.run(args)
    except (ValueError, TypeError, OSError, KeyError) as error:
        sys.exit(f"easyfn {args.command}: {error}")
