"""How a sentence-transformers checkpoint makes one vector of many: `modules.json` and what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.schema import either, flag, many, maybe, problems, read_json, real, record, word
from ..nn import SentenceEmbedding
from .checkpoint import LoadError

MODULES = "modules.json"
READING = "sentence_bert_config.json"  # how texts are read, whatever the transformer
TOKENS = "tokenizer_config.json"
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # in the order in which sentence-transformers joins their vectors


def sentence_settings(folder: Path) -> dict[str, Any] | None:
    """What follows the transformer in a sentence-transformers folder; `None` if the folder is no such checkpoint.

    `{"pooling": [mode, ...], "normalize": bool, "length": tokens that a text is cut to, or None, "lower": whether it is put
    in small letters first, "other": [names of modules that easyfn does not implement]}`.
    """
    if not (folder / MODULES).is_file():
        return None
    found: dict[str, Any] = {"pooling": ["mean"], "normalize": False, "length": None, "lower": False, "other": []}
    for kind, path in _modules(folder):
        if kind == "Pooling":
            found["pooling"] = _pooling(folder / path / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind == "Transformer":
            found |= _reading(folder, path)
        else:
            found["other"].append(kind)
    return found


def settings_files(folder: Path) -> list[str]:
    """The files, relative to the folder, that `sentence_settings` reads after `modules.json`."""
    files = {"Pooling": ["config.json"], "Transformer": [READING, TOKENS]}
    return [str(Path(path, file)) for kind, path in _modules(folder) for file in files.get(kind, ())]


def _modules(folder: Path) -> list[tuple[str, str]]:
    """The name of each module's class, and its folder. The list comes from strangers: a folder lies in this one."""
    data = read_json(folder / MODULES, LoadError)
    wrong = list(many(record({"type": word, "path": word}, needs=("type", "path")))("it", data))
    if not wrong:
        wrong = [
            f"a module's path is {m['path']!r:.80}, and must be that of a folder in this one"
            for m in data
            if m["path"].startswith("/")
            or set("\\:\0") & set(m["path"])
            or any(part == ".." or len(part.encode("utf-8", "replace")) > 255 for part in m["path"].split("/"))
        ]
    if wrong:
        raise LoadError(folder / MODULES, wrong)
    return [(m["type"].rpartition(".")[2], m["path"]) for m in data]


def sentence_files(model: Any) -> dict[str, Any]:
    """The JSON files, by relative path, that make a saved model a sentence-transformers folder: none for others."""
    if not isinstance(model, SentenceEmbedding):
        return {}
    last = [("2_Normalize", "Normalize")] if model.normalize else []
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *last]
    modes = {name: mode in model.pooling for name, mode in _FLAGS.items()}
    reading = {"max_seq_length": model.length, "do_lower_case": model.lower}
    return {
        **({READING: reading} if model.length is not None or model.lower else {}),
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": model.config.hidden_size, **modes},
    }


def _reading(folder: Path, path: str) -> dict[str, Any]:
    """How a text becomes tokens: what sentence-transformers says itself, and else what the tokenizer says."""
    length = maybe(real(1))  # transformers writes 1e30 where there is no limit
    said: dict[str, Any] = {}
    for name, table in (
        (READING, {"max_seq_length": length, "do_lower_case": maybe(flag)}),
        (TOKENS, {"model_max_length": length}),
    ):
        if (file := folder / path / name).is_file():
            data = read_json(file, LoadError)
            if wrong := problems(data, table):
                raise LoadError(file, wrong)
            said |= {key: data.get(key) for key in table}
    most = said.get("max_seq_length") or said.get("model_max_length")
    return {"length": int(most) if most and most < 2**31 else None, "lower": bool(said.get("do_lower_case"))}


def _pooling(file: Path) -> list[str]:
    try:
        config = read_json(file, LoadError)
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(file.parent, [f"there is no {file.name}, and {MODULES} names the folder"]) from None
    table = {
        **dict.fromkeys(_FLAGS, flag),
        "pooling_mode": maybe(either(word, many(word), wanted="a name or a list of them")),
    }
    if wrong := problems(config, table):
        raise LoadError(file, wrong)
    modes = config.get("pooling_mode")  # the newer spelling: one name, or several
    if modes:
        return [modes] if isinstance(modes, str) else list(modes)
    return [mode for name, mode in _FLAGS.items() if config.get(name)] or ["mean"]
