"""`easyfn doctor`: what is installed, what it runs on, and what is missing with the line that installs it."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXTRAS = {
    "cli": ("tokenizers", "rich", "matplotlib"),
    "train": ("orbax.checkpoint", "grain", "jinja2", "yaml"),
    "serve": ("starlette", "uvicorn", "jinja2"),
    "torch": ("torch", "transformers"),
    "gguf": ("gguf",),
    "structured": ("outlines_core",),
    "remote": ("fsspec", "gcsfs", "s3fs"),
    "eval": ("lm_eval",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
}


def run(args: argparse.Namespace) -> None:
    width = max(len(f"extra {name}") for name in EXTRAS) + 2
    for name, value in facts():
        print(f"{name.ljust(width)}{value}")
    print()
    for name, modules in EXTRAS.items():
        missing = [module for module in modules if not _there(module)]
        said = "there" if not missing else f'needs {", ".join(missing)}: pip install "easyfn[{name}]"'
        print(f"{f'extra {name}'.ljust(width)}{said}")


def facts() -> Iterator[tuple[str, str]]:
    """What is true of this machine and what is installed."""
    import huggingface_hub.constants
    import jax

    from easyfn import nn

    for package in ("easyfn", "jax", "jaxlib", "equinox", "optax", "numpy"):
        yield package, version(package)
    yield "python", platform.python_version()
    yield "system", f"{platform.system()} {platform.machine()}"
    devices = jax.devices()
    yield "devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    yield "cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    yield "kernels", _kernels()
    yield "bfloat16", f"products of many rows in {nn.product_form('bfloat16')}"
    yield from _memory(devices[0])
    hub = Path(huggingface_hub.constants.HF_HUB_CACHE)
    free = next(shutil.disk_usage(folder).free for folder in (hub, *hub.parents) if folder.exists())
    yield "hub cache", f"{hub}, {free / 1e9:.1f} GB free"
    compiled = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    yield "compiled cache", compiled or "none: JAX_COMPILATION_CACHE_DIR=folder keeps compiled programs"


def _kernels() -> str:
    """Whether attention and products of a few rows with packed weights are compiled ones."""
    from easyfn import quant

    if not _there("easyfn_kernels"):
        return "none: pip install ./kernels, in a checkout, makes attention, and decoding with packed weights, faster on CPU"
    if os.environ.get("EASYFN_KERNELS") == "0":
        return f"{version('easyfn-kernels')}, off: EASYFN_KERNELS=0"
    try:
        return f"{version('easyfn-kernels')}, {quant.kernels()}"
    except ImportError as e:
        return str(e)


def _memory(device: Any) -> Iterator[tuple[str, str]]:
    if found := (device.memory_stats() or {} if device.platform != "cpu" else {}):
        free = found.get("bytes_limit", 0) - found.get("bytes_in_use", 0)
        yield "device memory", f"{free / 1e9:.1f} of {found.get('bytes_limit', 0) / 1e9:.1f} GB free"
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free, whole = (int(lines[name].split()[0]) * 1024 / 1e9 for name in ("MemAvailable", "MemTotal"))
        yield "memory", f"{free:.1f} of {whole:.1f} GB free"


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def add(commands: Any) -> None:
    """The parser of the command."""
    p = commands.add_parser("doctor", help="versions, devices, memory, caches, and what is missing")
    p.set_defaults(run=run)
