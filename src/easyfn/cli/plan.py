"""`easyfn plan`: the table of `ef.plan`, or its JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .checked import dtype, method, source, whole
from .parts import tell
from .together import sizes_of


def run(args: argparse.Namespace) -> None:
    import easyfn as ef

    mesh: Any = "search" if args.search else sizes_of(args.mesh) if args.mesh else {"fsdp": args.devices or 1}
    planned = ef.plan(
        args.checkpoint,
        mesh=mesh,
        devices=args.devices,
        batch=args.batch,
        sequence_length=args.sequence_length,
        rules=args.rules,
        task=args.task,
        dtype=args.dtype,
        optimizer=args.optimizer,
        remat=None if args.remat == "none" else args.remat,
        lora=args.lora,
        quantize=args.quantize,
        accumulate=args.accumulate,
        generate=args.generate,
        hardware=args.hardware,
    )
    if args.json:
        print(json.dumps(planned.as_dict(), indent=2))
    else:
        tell(planned)


def add(commands: Any) -> None:
    """The parser of the command."""
    p = commands.add_parser("plan", help="memory and time of a step on devices that are not there")
    p.add_argument("checkpoint", type=source, help="a folder, a hub id or a config.json")
    p.add_argument("--devices", type=whole, help="how many; with --mesh its axes must have as many")
    p.add_argument("--mesh", help="sizes by axis: fsdp=16,tp=4 (default: all devices on fsdp)")
    p.add_argument("--search", action="store_true", help="find the best mesh of --devices")
    p.add_argument("--batch", type=whole, required=True, help="rows of a step, over all devices")
    p.add_argument("--sequence-length", type=whole, default=4096, help="tokens of a row")
    p.add_argument("--rules", help="fsdp, tp, fsdp_tp, ep, replicated, ... (default: the family's)")
    p.add_argument("--task", help="default: the checkpoint's own")
    p.add_argument("--dtype", type=dtype, default="bfloat16", help="of the weights")
    p.add_argument("--optimizer", default="adamw", help="adamw, adam, sgd, lion, adafactor")
    p.add_argument("--remat", default="full", choices=["full", "dots", "none"], help="what is made again backwards")
    p.add_argument("--accumulate", type=whole, default=1, help="parts of a step, one after another")
    p.add_argument("--lora", type=whole, metavar="RANK", help="train adapters of this rank")
    p.add_argument("--quantize", type=method, help="nf4, 8bit, ...")
    p.add_argument("--generate", type=whole, metavar="TOKENS", help="new tokens after a prompt, instead of training")
    p.add_argument("--hardware", default="h100", help="a100, h100, h200, b200, tpu-v5p, tpu-v6e, ...")
    p.add_argument("--json", action="store_true", help="as JSON")
    p.set_defaults(run=run)
