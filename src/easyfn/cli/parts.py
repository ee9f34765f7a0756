"""What several commands need: optional packages and tokenizers."""

from __future__ import annotations

from typing import Any

from .together import is_first


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


def copy_texts(source: str, target: str) -> None:
    """What belongs to the words of a checkpoint: its tokenizer, chat template and preprocessor, beside a model made of it."""
    import shutil
    import sys
    from pathlib import Path

    import easyfn as ef

    if source.endswith(".gguf"):
        try:
            ef.gguf_tokenizer(source).save(str(Path(target) / "tokenizer.json"))
        except (ImportError, ValueError) as error:
            print(f"easyfn: no tokenizer.json was written: {error}", file=sys.stderr)
    elif Path(source).is_dir() and is_first():
        for pattern in ("*token*.json", "*.jinja", "vocab.*", "merges.txt", "*.model", "*processor_config.json"):
            for path in Path(source).glob(pattern):
                shutil.copy(path, target)
