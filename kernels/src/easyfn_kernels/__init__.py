"""Attention, and products of a few rows with packed weights, compiled: what `easyfn` calls on a CPU where it is installed."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

__version__ = "0.1.0"

TARGETS = ("easyfn_nibbles", "easyfn_bytes", "easyfn_blocks", "easyfn_attend", "easyfn_attend_back")


@functools.cache
def library() -> ctypes.CDLL:
    """The library that lies in this package's own folder; no other is ever loaded, and nothing is compiled here."""
    found = ctypes.CDLL(str(Path(__file__).parent / "_thin.so"))
    found.easyfn_instructions.restype = ctypes.c_char_p
    found.easyfn_use.argtypes = [ctypes.c_char_p]
    return found


@functools.cache
def register() -> None:
    """Makes the handlers known to XLA, on CPU, once in a process."""
    import jax

    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library(), name)), platform="cpu")


def instructions() -> str:
    """The instruction set that is used: `avx512`, `avx2` or `plain`."""
    return library().easyfn_instructions().decode()


def use(name: str) -> bool:
    """Takes the instruction set `name` for all products from now on; false, and nothing changed, where the processor lacks it."""
    return bool(library().easyfn_use(name.encode()))
