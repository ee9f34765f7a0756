"""The tokenizer of a checkpoint (extra `cli`): `tokenizer.json`, or what a `.gguf` file says of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .checkpoint import LoadError
from .gguf.tokenizer import gguf_tokenizer, refused
from .hub import locate
from .words import FILE, folder_of


def tokenizer(path: Any, **options: Any) -> Any:
    """The `tokenizers.Tokenizer` of a folder, a hub repository or a `.gguf` file, without transformers (extra `cli`).

    `options` are huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`. Raises `FileNotFoundError` for
    a folder without a `tokenizer.json`, and [`easyfn.LoadError`][] for one that the library does not read.

    ```python
    import pathlib, tempfile, easyfn as ef
    from tokenizers import Tokenizer, models
    with tempfile.TemporaryDirectory() as folder:
        Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b")).save(str(pathlib.Path(folder, "tokenizer.json")))
        assert ef.tokenizer(folder).encode("a").ids == [0]
    ```
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"tokenizer takes the path that the model came from, ef.tokenizer(path), not a {type(path).__name__}"
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("ef.tokenizer needs tokenizers: pip install 'easyfn[cli]'") from error
    file = Path(path).expanduser()
    if file.suffix == ".gguf":
        return gguf_tokenizer(file)
    if file.is_dir():
        file = file / FILE
    elif file.name != FILE:
        file = _fetch(str(path), options)
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {FILE}: give token ids, or a folder that has one")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:
        if not refused(error):
            raise
        raise LoadError(file, [f"the tokenizers library {tokenizers.__version__} does not read it ({error})"]) from None


def chat_template(path: Any, *, file: Any = None, **options: Any) -> Any:
    """The chat template of a checkpoint with its special tokens, a function from messages to text (`ChatTemplate`), or
    `None` if it has none; as transformers' `apply_chat_template` writes it.

    - `path`: a folder with `chat_template.jinja` or `tokenizer_config.json`, a hub repository or a `.gguf` file.
    - `file`: a template in a file of its own, instead of the checkpoint's.
    - `options`: huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`.

    Needs jinja2, of the extras `train` and `serve`.

    ```python
    import pathlib, tempfile, easyfn as ef
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
        assert ef.chat_template(folder)([{"role": "user", "content": "Hi"}]) == "<user>Hi"
    ```
    """
    try:
        from . import template
    except ImportError as error:
        raise ImportError("ef.chat_template needs jinja2: pip install 'easyfn[train]'") from error
    file_or_folder = Path(path).expanduser()
    if file_or_folder.suffix != ".gguf":
        file_or_folder = folder_of(path, **options)
    return template.chat_template(file_or_folder, file=file)


def _fetch(repo: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = locate(repo, weights=False, **options)
    try:
        return Path(hf_hub_download(repo, FILE, **{**options, "revision": folder.name}))
    except EntryNotFoundError:
        return folder / FILE
