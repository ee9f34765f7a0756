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


_TEXTS = (
    *("*token*.json", "*.jinja", "additional_chat_templates/*.jinja", "vocab.*", "merges.txt", "*.model"),
    *("*processor_config.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)


def files_of(checkpoint: str) -> str:
    """The folder of a checkpoint's tokenizer and what goes with it, or its `.gguf` file."""
    from pathlib import Path

    if Path(checkpoint).exists():
        return checkpoint
    import huggingface_hub

    return huggingface_hub.snapshot_download(checkpoint, allow_patterns=list(_TEXTS))


def copy_texts(source: str, target: str) -> None:
    """What belongs to the words of a checkpoint: its tokenizer, chat template and preprocessor, beside a model made of it."""
    import shutil
    import sys
    from pathlib import Path

    import easyfn as ef

    if not is_first():
        return
    if source.endswith(".gguf"):
        try:
            ef.gguf_tokenizer(source).save(str(Path(target) / "tokenizer.json"))
        except (ImportError, ValueError) as error:
            print(f"easyfn: no tokenizer.json was written: {error}", file=sys.stderr)
        return
    if "://" in source:
        return
    try:
        folder = Path(files_of(source))
    except OSError as error:
        print(f"easyfn: no tokenizer was written: {error}", file=sys.stderr)
        return
    for path in (path for pattern in _TEXTS for path in folder.glob(pattern)):
        place = Path(target) / path.relative_to(folder)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(path, place)
