"""What belongs to the words and images of a checkpoint, and to no weight: tokenizer, chat template, preprocessor."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .gguf.tokenizer import gguf_tokenizer, tokenizer_metadata
from .hub import is_gguf, locate
from .remote import fetch_all, is_url, plain

FILE = "tokenizer.json"
_PATTERNS = (
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",  # sentencepiece
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def words_of(source: Any) -> dict[str, bytes]:
    """The files, by their relative path, of a folder, a hub repository, a URL, a `.gguf` file or a tokenizer.

    A tokenizer is a `tokenizers.Tokenizer`, or what has `save_pretrained`: a tokenizer or a processor of transformers.
    """
    source = plain(source)
    if not isinstance(source, str | Path):
        return _written(source)
    path = Path(source).expanduser()
    if is_gguf(path):
        return {FILE: gguf_tokenizer(path).to_str(pretty=True).encode()}
    if path.name == FILE and path.is_file():
        return {FILE: path.read_bytes()}
    found = fetch_all(str(source), _PATTERNS) if is_url(source) else _read(folder_of(source))
    if not found:
        raise FileNotFoundError(f"save: tokenizer={str(source)!r} has no file of a tokenizer: {', '.join(_PATTERNS)}")
    return found


def _read(folder: Path) -> dict[str, bytes]:
    files = sorted({file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()})
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def folder_of(source: Any, **options: Any) -> Path:
    """The folder with these files: as it is given, or of a hub repository, fetched. `options` are huggingface_hub's."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    commit = locate(source, weights=False, **options).name
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), allow_patterns=list(_PATTERNS), **{**options, "revision": commit}))


def _written(tokenizer: Any) -> dict[str, bytes]:
    if hasattr(tokenizer, "save_pretrained"):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir()) if f.is_file()}
    if hasattr(tokenizer, "to_str"):
        return {FILE: tokenizer.to_str(pretty=True).encode()}
    raise TypeError(
        "save: tokenizer is the folder or the hub id that the model came from, a tokenizers.Tokenizer, or a tokenizer or "
        f"processor of transformers, not {type(tokenizer).__name__}"
    )


def gguf_words(source: Any, vocab_size: int) -> dict[str, Any]:
    """The same as the metadata of a `.gguf` file."""
    if isinstance(source, str | Path) and is_gguf(path := Path(source).expanduser()):
        from .gguf.read import read_gguf

        return {k: v for k, v in read_gguf(path).metadata.items() if k.startswith("tokenizer.")}
    found = words_of(source)
    if FILE not in found:
        raise ValueError(f"save: a .gguf file takes its tokenizer from a {FILE}, and there are {', '.join(found)}")
    return tokenizer_metadata(found[FILE].decode(), vocab_size=vocab_size)
