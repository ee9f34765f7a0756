"""Values of the command line that are checked as they are read, and places that nothing else may lie at."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Wrong(ValueError):
    """A command that was told something wrong: one line and exit code 2."""


def number(kind: type, least: int | float, most: int | float = float("inf")) -> Callable[[str], Any]:
    """A reader of numbers from `least` to `most`, for `add_argument(type=)`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            top = "" if most == float("inf") else f" to {most:g}"
            words = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{words} from {least:g}{top or ' on'}, not {text!r}")
        return value

    return read


whole = number(int, 1)
count = number(int, 0)
positive = number(float, 0.0)
seconds = number(float, 0.001)
share = number(float, 0.0, 1.0)
port = number(int, 0, 65535)


def dtype(text: str) -> Any:
    """A reader of `--dtype`."""
    import jax.numpy as jnp

    try:
        found = jnp.dtype(text)
    except TypeError:
        found = jnp.dtype(int)
    if not jnp.issubdtype(found, jnp.floating):
        raise argparse.ArgumentTypeError(f"float32, bfloat16 or float16, not {text!r}")
    return found


def method(text: str) -> str:
    """A reader of `--quantize` and `--method`: the name of a weight format, before anything is read."""
    import easyfn as ef

    try:
        return str(ef.QuantConfig(text).method)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None


def source(text: str) -> str:
    """A reader of checkpoints and adapters: one that can be no name on a hub is there."""
    path = Path(text).expanduser()
    named = "://" in text or (text.count("/") < 2 and not text.startswith((".", "/", "~")) and path.suffix != ".gguf")
    if not named and not path.exists():
        raise argparse.ArgumentTypeError(f"there is no folder or file {text!r}; one of a hub is written 'user/name'")
    return text


def text_file(text: str) -> str:
    """A reader of files of text: there is one."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


def free(out: str, force: bool, *sources: str | None) -> None:
    """Refuses a result in the place of what is read, always, and of what is there, without --force; and below a file."""
    path = Path(out)
    if file := next((p for p in path.parents if p.is_file()), None):
        raise Wrong(f"{out} would lie in {file}, which is a file: choose another place")
    if path.resolve() in {Path(source).resolve() for source in sources if source}:
        raise Wrong(f"{out} is what is read: choose another place")
    if not force and path.exists() and (path.is_file() or any(path.iterdir())):
        raise Wrong(f"{out} exists; --force puts the new one in its place")


@contextlib.contextmanager
def stoppable(name: str) -> Iterator[None]:
    """Ctrl-C ends with one line and exit code 130, in an import too, where compiled modules make another error of it."""
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if frame is not None and frame.f_code.co_name == "_xla_gc_callback":  # of JAX: what it raises, Python drops
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        heard.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, hear)
    try:
        yield
    except (KeyboardInterrupt, ImportError, SystemError) as error:
        if not heard and not isinstance(error, KeyboardInterrupt):
            raise
        print(f"\n{name}: stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


# What other programs call it.
_HABITS = {
    "merge": "convert CHECKPOINT OUT --adapter FOLDER, which merges it",
    "export": "convert CHECKPOINT OUT.gguf",
    "train": "finetune or pretrain",
    "sft": "finetune",
    "run": "generate or chat",
    "eval": "perplexity",
    "info": "show",
    "inspect": "show",
    "embed": "serve, or ef.embed",
}


class Parser(argparse.ArgumentParser):
    """Wrong use is one line, and exit code 2."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = self.parse_known_args(args, namespace)
        if left:  # of the command, whose help has the right ones
            name = f"{self.prog} {getattr(found, 'command', None) or ''}".rstrip()
            self.exit(2, f"{name}: unrecognized arguments: {' '.join(left)}; {name} --help says more\n")
        return found

    def error(self, message: str) -> Any:
        said = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        if said and said[1] in _HABITS:
            message = f"there is no command {said[1]!r}: it is easyfn {_HABITS[said[1]]}"
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says more\n")
