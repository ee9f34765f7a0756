"""What several commands need: optional packages and tokenizers."""

from __future__ import annotations

import functools
import importlib.util
import sys
from typing import Any

from .together import is_first


def extra(module: str, name: str = "cli") -> Any:
    """An optional dependency, or an error that names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(
            f'easyfn: this command needs {module}; install it with: pip install "easyfn[{name}]"'
        ) from error


def tokenizer_of(checkpoint: str) -> Any:
    """The tokenizer of a checkpoint."""
    import easyfn as ef

    extra("tokenizers")
    try:
        return ef.tokenizer(checkpoint)
    except FileNotFoundError as error:
        raise SystemExit(f"easyfn: {error}, with --ids where the command has it") from None


def save(model: Any, out: str, source: str, *, kind: str | None = None, **options: Any) -> None:
    """`ef.save` with what belongs to the words of `source` (tokenizer, chat template, preprocessor), if it has any; with
    `kind`, `ef.save_gguf`."""
    import easyfn as ef

    write: Any = functools.partial(ef.save_gguf, kind=kind)
    if kind is None:  # what is there was asked for with --force
        write = functools.partial(ef.save, overwrite=True, **options)
    try:
        write(model, out, tokenizer=source)
    except (OSError, ImportError, ValueError) as error:
        write(model, out)  # raises what the tokenizer has no part in
        if is_first():
            print(f"easyfn: no tokenizer was written: {str(error).removeprefix('save: ')}", file=sys.stderr)


def tell(report: Any) -> None:
    """A table of `show` or `plan`: drawn by rich in a terminal where it is installed, else as text."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console

        Console(highlight=False).print(report)
    else:
        print(report)
