"""`prune_layers`: fewer layers, and the config that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx

from ..core.tree import Pipelined, Stacked, at, leaves, nodes, replace
from ..core.weight import shape_of
from ..registry.family import build
from .task import task

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "num_encoder_layers")


def prune_layers(model: Any, keep: Sequence[int]) -> Any:
    """`model` with the layers whose numbers are in `keep`, in that order, and with the config of such a model.

    What the config says layer by layer (`layer_types`, ...) is kept with its layer. Weights are those of `model`, in
    whatever format they are, adapters included. So the result can be saved, which a model whose layers were dropped by
    `eqx.tree_at` cannot.

    Raises `ValueError` for numbers that the model does not have or that come twice, for a stacked model (take it apart
    with [`easyfn.unstack`][] first), for one with several towers of layers, and where the config tells the kind of a layer
    by its number, so that those that stay would become others.

    ```python
    import jax, easyfn as ef
    config = ef.testing.tiny(num_hidden_layers=4).config
    model = ef.init(config, key=jax.random.key(0))
    small = ef.prune_layers(model, [0, 3])
    assert small.config.num_hidden_layers == 2
    assert small.model.layers[1].mlp is not None and ef.num_params(small) < ef.num_params(model)
    ```
    """
    where, layers = _layers(model)
    if isinstance(keep, int):
        raise TypeError(f"prune_layers: keep is the numbers of the layers that stay, such as range({keep}), not {keep}")
    kept = [int(i) + (len(layers) if i < 0 else 0) for i in keep]
    if not kept or len(set(kept)) < len(kept) or not all(0 <= i < len(layers) for i in kept):
        raise ValueError(f"prune_layers: keep={list(keep)} must be different numbers of the {len(layers)} layers")
    smaller = build(_config(model.config, len(layers), kept), task(model))
    head = f"{where}."

    def old(path: str) -> str:
        if not path.startswith(head):
            return path
        number, dot, rest = path.removeprefix(head).partition(".")
        return f"{head}{kept[int(number)]}{dot}{rest}"

    try:
        new = {path: at(model, old(path)) for path in leaves(smaller)}
    except KeyError as error:
        raise ValueError(f"prune_layers: {error.args[0]} {_WHY}") from None
    for path, declared in leaves(smaller).items():
        if tuple(shape_of(new[path])) != tuple(declared.shape):
            raise ValueError(f"prune_layers: {old(path)} has the shape {tuple(shape_of(new[path]))}. {_WHY}")
    here = {path: node for path, node in nodes(model) if path.startswith(head)}
    for path, node in nodes(smaller):
        if path.startswith(head) and (different := _differs(node, here.get(old(path)))):
            raise ValueError(f"prune_layers: {old(path)} would become another layer ({different}). {_WHY}")
    return replace(smaller, new)


_WHY = "The config of the smaller model cannot say this choice of layers; keep another, such as whole periods."


def _layers(model: Any) -> tuple[str, Sequence[Any]]:
    """The path of a model's layers, and the layers."""
    if any(isinstance(node, Stacked | Pipelined) for _, node in nodes(model)):
        raise ValueError("prune_layers: the layers are stacked; take them apart first: ef.unstack(model)")
    config = getattr(model, "config", None)
    counts = {getattr(config, name) for name in COUNTS if hasattr(config, name)}
    found = [
        (path, node)
        for path, node in nodes(model)
        if isinstance(node, list | tuple) and len(node) in counts and all(isinstance(x, eqx.Module) for x in node)
    ]
    if len(found) != 1:
        there = ", ".join(path for path, _ in found) or "none"
        raise ValueError(f"prune_layers: it takes a model with one run of layers, and this one has {there}")
    return found[0]


def _config(config: Any, count: int, kept: list[int]) -> Any:
    """The config with as many layers, and with what it says of each."""
    changes: dict[str, Any] = {n: len(kept) for n in COUNTS if getattr(config, n, None) == count}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple | list) and len(value) == count and field.name.startswith(("layer", "layers")):
            changes[field.name] = type(value)(value[i] for i in kept)
    return dataclasses.replace(config, **changes)


def _differs(new: Any, old: Any) -> str:
    """The first static field in which two layers differ that should be one."""
    if type(new) is not type(old) or not dataclasses.is_dataclass(new):
        return "" if type(new) is type(old) or not isinstance(new, eqx.Module) else type(new).__name__
    for field in dataclasses.fields(new):
        a, b = getattr(new, field.name), getattr(old, field.name)
        if field.metadata.get("static") and not dataclasses.is_dataclass(a) and field.name != "layer_idx" and a != b:
            return f"{field.name}={b!r} here, {a!r} there"
    return ""
