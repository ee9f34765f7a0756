"""A folder that holds another checkpoint than the one to be saved: what is said of it, what is refused, and what may go."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoint import CONFIG, DAMAGE
from .place import MODEL

ADAPTER = "adapter_config.json"
_ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")
# What belongs to one checkpoint and would speak for another: words, images, the parts of sentence-transformers.
_WORDS = re.compile(
    r".*token.*\.json|vocab\..*|merges\.txt|.*\.model|.*\.jinja|.*processor_config\.json|additional_chat_templates"
    r"|modules\.json|\d+_[A-Z]\w*|(config_)?sentence_\w+\.json|(pytorch_model|consolidated).*|params\.json"
)
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "hidden_dim")  # which nothing that is done to a model changes


class Another(NamedTuple):
    """What a folder holds, in words, and the files of it that speak for the other one."""

    said: str
    goes: str
    files: re.Pattern[str]


def another(folder: Path, config: Mapping[str, Any]) -> Another | None:
    """The checkpoint in a folder, if it is no other state of the one that this config is of: of another `model_type` or
    width. An adapter is one, too: transformers puts it on whatever model lies beside it."""
    every = "the other's weights, adapter, tokenizer and settings", re.compile(_either(MODEL, _ADAPTER, _WORDS))
    if (folder / CONFIG).is_file():
        try:
            old = json.loads((folder / CONFIG).read_bytes())
        except (*DAMAGE, ValueError):
            old = config  # half a file is nothing to keep
        kinds = [data.get("model_type") if isinstance(data, Mapping) else None for data in (old, config)]
        if kinds[0] != kinds[1]:
            return Another(f"a {kinds[0]} model" if kinds[0] else f"a {CONFIG} of no model", *every)
        was, now = _widths(old), _widths(config)
        if key := next((key for key in was if now.get(key, was[key]) != was[key]), None):
            return Another(f"another {kinds[0]} model ({key} {was[key]}, not {now[key]})", *every)
    if (folder / ADAPTER).is_file():
        said = "an adapter, which transformers puts on any model beside it (on a merged one once more)"
        return Another(said, "the adapter", re.compile(_either(MODEL, _ADAPTER)))
    return None


def _either(*patterns: re.Pattern[str]) -> str:
    return "|".join(each.pattern for each in patterns)


def _widths(config: Mapping[str, Any], above: str = "") -> dict[str, int]:
    """The sizes that tell two checkpoints of one kind apart, of the configs inside, too."""
    found = {}
    for key, value in config.items():
        if key in _WIDTHS and type(value) is int:
            found[above + key] = value
        elif key.endswith("_config") and isinstance(value, Mapping):
            found |= _widths(value, f"{key}.")
    return found


def going(there: Another | None, folder: Any, overwrite: bool | None) -> re.Pattern[str]:
    """The files that make room for the new ones. Raises `FileExistsError` for a folder that holds another checkpoint where
    that is not wanted; what stays of another is logged."""
    if there is None:
        return MODEL
    if overwrite:
        return there.files
    if overwrite is False:
        raise FileExistsError(
            f"save: {folder} holds {there.said}: choose another folder, or give overwrite=True, with which {there.goes} "
            "will go (other files stay)"
        )
    logging.getLogger("easyfn").warning(
        "save: %s held %s: weights and config are replaced, and its other files stay beside the new model. overwrite=True "
        "takes %s away, overwrite=False refuses",
        folder,
        there.said,
        there.goes,
    )
    return MODEL
