"""What several commands need: optional packages and tokenizers."""

from __future__ import annotations

from typing import Any


def extra(module: str, name: str = "cli") -> Any:
    """An optional dependency, or an error that names the extra."""
    import importlib

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
