"""Tied weights in files: which of two names of one array a file has kept.

`safetensors.torch.save_model` keeps one name of tensors that share memory; of a tied model that may be the head's. And
a model that is told to be untied gets a head of its own from a tied file: at first a copy of the embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core.tree import nodes
from ..names.rules import Tensors, tensors
from ..nn import input_embeddings
from ..registry.family import Family, abstract_config

Names = Mapping[str, Tensors]


def head_of(config: Any, known: Family, wanted: Names, model: Any, held: Mapping[str, Any]) -> dict[str, Tensors]:
    """For the embeddings of a tied model whose file holds the head alone: that they are read from the head's tensor."""
    table = _table(model)
    if table is None or table not in wanted or not getattr(config, "tie_word_embeddings", False):
        return {}
    mine = wanted[table]
    for task in known.tasks:
        for head in _heads(config, known, task):
            name = next((n for n in head.names if n in held), None)
            if name is not None and head.layout == mine.layout and tuple(held[name].shape) == mine.shapes()[0]:
                return {table: mine._replace(names=(name,))}
    return {}


def table_of(config: Any, known: Family, task: str, wanted: Names, model: Any) -> dict[str, Tensors]:
    """For the head of an untied model whose file is a tied one: that it is read from the tensor of the embeddings."""
    table = _table(model)
    if table is None or table not in wanted or getattr(config, "tie_word_embeddings", True):
        return {}
    same = [
        h for h in _heads(config, known, task) if (h.layout, h.shape) == (wanted[table].layout, wanted[table].shape)
    ]
    return {head.path: wanted[table]._replace(path=head.path) for head in same}


def _heads(config: Any, known: Family, task: str) -> list[Tensors]:
    """The matrices that a model has when it is not tied, and only then."""
    one, two = (_matrices(dataclasses.replace(config, tie_word_embeddings=t), known, task) for t in (False, True))
    return [found for path, found in one.items() if path not in two]


def _matrices(config: Any, known: Family, task: str) -> dict[str, Tensors]:
    model = abstract_config(config, task, None)
    return {path: found[0] for path, found in tensors(model, known.names(model)).items() if len(found[0].shape) == 2}


def _table(model: Any) -> str | None:
    """The path of the weight of the input embeddings."""
    try:
        weight = input_embeddings(model).weight
    except (TypeError, AttributeError):  # a model that takes no tokens
        return None
    return next((path for path, node in nodes(model) if node is weight), None)
