"""How a sentence-transformers checkpoint makes one vector of many: `modules.json` and what it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..nn import SentenceEmbedding

MODULES = "modules.json"
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

    `{"pooling": [mode, ...], "normalize": bool, "other": [names of modules that easyfn does not implement]}`.
    """
    if not (folder / MODULES).is_file():
        return None
    found: dict[str, Any] = {"pooling": ["mean"], "normalize": False, "other": []}
    for module in json.loads((folder / MODULES).read_text("utf-8")):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            found["pooling"] = _pooling(json.loads((folder / module["path"] / "config.json").read_text("utf-8")))
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer":
            found["other"].append(kind)
    return found


def settings_files(folder: Path) -> list[str]:
    """The files, relative to the folder, that `sentence_settings` reads after `modules.json`."""
    modules = json.loads((folder / MODULES).read_text("utf-8"))
    return [f"{m['path']}/config.json" for m in modules if str(m.get("type", "")).endswith(".Pooling")]


def sentence_files(model: Any) -> dict[str, Any]:
    """The JSON files, by relative path, that make a saved model a sentence-transformers folder: none for others."""
    if not isinstance(model, SentenceEmbedding):
        return {}
    last = [("2_Normalize", "Normalize")] if model.normalize else []
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *last]
    modes = {flag: mode in model.pooling for flag, mode in _FLAGS.items()}
    return {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": model.config.hidden_size, **modes},
    }


def _pooling(config: dict[str, Any]) -> list[str]:
    modes = config.get("pooling_mode")  # the newer spelling: one name, or several
    if modes:
        return [modes] if isinstance(modes, str) else list(modes)
    return [mode for flag, mode in _FLAGS.items() if config.get(flag)] or ["mean"]
