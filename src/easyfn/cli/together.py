"""`easyfn --distributed`: one of several processes that run one command on one model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from .checked import Wrong

AXES = ("pp", "dp", "fsdp", "ep", "tp", "sp")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--distributed",
        action="store_true",
        default=os.environ.get("EASYFN_DISTRIBUTED", "0") not in ("", "0"),
        help="this is one of several processes: join them (jax.distributed); also EASYFN_DISTRIBUTED=1",
    )
    parser.add_argument("--mesh", help="split the model over all devices, as in fsdp=4,tp=2")


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Joins the other processes, if this is one of several; only the first of them prints.

    Slurm, Open MPI, Kubernetes and TPU pods tell JAX who is who; elsewhere the environment does: JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    """
    if not args.distributed:
        yield
        return
    import jax

    if not jax.distributed.is_initialized():
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        given = {name: int(os.environ[key]) for name, key in names.items() if key in os.environ}
        jax.distributed.initialize(**given)  # type: ignore[arg-type]
    with contextlib.ExitStack() as quiet:
        if jax.process_index() > 0:
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
        yield


def is_first() -> bool:
    """Whether this process writes the files that one process writes."""
    import jax

    return jax.process_index() == 0


def sizes_of(text: str) -> dict[str, int]:
    """`fsdp=16,tp=4` as a dict."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if not size.strip().lstrip("-").isdigit():
            raise Wrong(f"--mesh is sizes by axis, such as fsdp=16,tp=4, not {text!r}")
        if name.strip() not in AXES:
            raise Wrong(f"--mesh {text}: there is no axis {name.strip()!r}, only {', '.join(AXES)}, as in fsdp=4,tp=2")
        sizes[name.strip()] = int(size)
    return sizes


def mesh_of(args: argparse.Namespace) -> Any:
    """The mesh of `--mesh`; of several processes all their devices, on `fsdp`; else none."""
    import jax

    import easyfn as ef

    if args.mesh is None:
        return ef.make_mesh() if jax.process_count() > 1 else None
    sizes = sizes_of(args.mesh)
    try:
        return ef.make_mesh(**{"fsdp": 1, **sizes})
    except ValueError as error:
        raise Wrong(f"--mesh {args.mesh}: {error}") from None


def places(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `ef.load` that put a model on the mesh; what does not divide is whole on every device."""
    import easyfn as ef

    mesh = mesh_of(args)
    if mesh is None:
        return {}
    rules = ef.default_rules(ef.abstract(args.checkpoint))
    return {"mesh": mesh, "rules": dataclasses.replace(rules, indivisible="replicate")}
