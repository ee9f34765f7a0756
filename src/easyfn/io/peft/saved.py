"""Weights and rows that train as they are, in PEFT's words: `modules_to_save`, `bias`, `trainable_token_indices`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...core.slots import Found, find_slots
from ...core.tree import expand, is_leaf
from ...lora import Full, LoRA, Rows
from ...names.rules import Rule
from ...nn import input_embeddings
from ...registry.family import family_of
from .names import in_memory, is_transposed, tensor_names


class Saved(NamedTuple):
    """The modules saved as they are, the keys of the settings that say so, and the tensors by name."""

    modules: list[str]
    settings: dict[str, Any]
    tensors: dict[str, np.ndarray]


def saved(model: Any, adapted: set[str], config: Mapping[str, Any]) -> Saved:
    """What a model trains beside its LoRAs, which are on the modules `adapted`.

    Raises `ValueError` for what PEFT's settings cannot say: a part of a module, some biases and not others.
    """
    rules = family_of(model).modules(model)
    values: dict[str, np.ndarray] = {}  # of weights that train, by their name in transformers
    biases: dict[str, np.ndarray] = {}
    tables: dict[str, Rows] = {}
    inputs = None
    for f in find_slots(model):
        if isinstance(f.weight, Rows):
            tables[_name(f.path, f, rules).removesuffix(".weight")] = f.weight
            if f.weight is input_embeddings(model).weight:
                inputs = _name(f.path, f, rules).removesuffix(".weight")
        if isinstance(f.weight, Full):
            for path, value in _singles(f, f.weight.value):
                where = biases if f.slot.role == "bias" else values
                where[_name(path, f, rules)] = value.swapaxes(-1, -2) if is_transposed(path, rules) else value
    bias = _bias(model, rules, biases, values, adapted, config)
    if bias is None:
        values, biases = values | biases, {}
        bias = "none"
    names = sorted({name.rpartition(".")[0] for name in values})
    within = {n: v for n, v in biases.items() if n.rpartition(".")[0] in names}
    biases = {n: v for n, v in biases.items() if n not in within}
    whole = _whole(model, names, values | within, rules)
    inside = lambda name: name.replace(".bias", ".base_layer.bias") if name.removesuffix(".bias") in adapted else name
    tensors = {**whole, **{inside(name): value for name, value in biases.items()}}
    tensors |= {f"{n}.token_adapter.trainable_tokens_delta": np.asarray(w.value) for n, w in tables.items()}
    settings = {
        "bias": bias,
        "modules_to_save": _listed(model, names, config),
        "trainable_token_indices": _rows(tables, inputs, config),
    }
    return Saved(names, settings, tensors)


def _name(path: str, f: Found, rules: Sequence[Rule]) -> str:
    names = in_memory(expand(path)[0], f.slot.role, (1, 1), rules)
    if len(names) != 1:
        raise ValueError(f"save_adapter: {path} is several modules in transformers ({', '.join(names)})")
    return names[0]


def _singles(f: Found, array: Any) -> list[tuple[str, np.ndarray]]:
    """The array of a slot, or those of the single layers of a stacked run."""
    names, whole = expand(f.path), np.asarray(array)
    return [(f.path, whole)] if names == [f.path] else list(zip(names, whole, strict=True))


def _bias(
    model: Any,
    rules: Sequence[Rule],
    trained: Mapping[str, Any],
    values: Mapping[str, Any],
    adapted: set[str],
    config: Mapping[str, Any],
) -> str | None:
    """PEFT's word for the trained biases, those of saved modules aside; `None` if it has none."""
    modules = {name.rpartition(".")[0] for name in values}
    every = {_name(path, f, rules) for f in find_slots(model, ("bias",)) for path in expand(f.path)}
    of = lambda names: {name for name in names if name.rpartition(".")[0] not in modules}
    mine = of(trained)
    if not mine:
        return "none"
    meanings = {"lora_only": of(n for n in every if n.rpartition(".")[0] in adapted), "all": of(every)}
    fitting = [word for word, names in meanings.items() if names == mine]
    said = config.get("bias")
    return said if said in fitting else fitting[0] if fitting else None


def _whole(
    model: Any, modules: list[str], values: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
    """All tensors of the modules that are saved, since PEFT saves modules: those that do not train as they are."""
    tensors = dict(values)
    for f in find_slots(model):
        for path, name in ((p, _name(p, f, rules)) for p in expand(f.path)):
            module = name.rpartition(".")[0]
            outer = next((m for m in modules if module == m or module.startswith(f"{m}.")), None)
            if outer is None or name in tensors:
                continue
            if module != outer or isinstance(f.weight, (LoRA, Rows)) or not is_leaf(f.weight):
                raise ValueError(
                    f"save_adapter: PEFT saves whole modules, and of {outer} this model trains {sorted(values)[0]} but "
                    f"not {name} with it"
                )
            value = dict(_singles(f, f.weight))[path]
            tensors[name] = value.swapaxes(-1, -2) if is_transposed(path, rules) else value
    return tensors


def _listed(model: Any, modules: list[str], config: Mapping[str, Any]) -> list[str] | None:
    """The names for `modules_to_save`, of which PEFT takes every module that ends so."""
    every = {name.rpartition(".")[0] for name in tensor_names(model)}
    ends = lambda words: {m for m in every if any(m.endswith(w) for w in words)}
    said = config.get("modules_to_save")
    if isinstance(said, list) and (said or not modules) and ends(said) == set(modules):
        return said
    if not modules:
        return None
    last = {m.rsplit(".", 1)[-1] for m in modules}
    words = sorted({w for w in last if ends([w]) <= set(modules)})
    words += [m for m in modules if m not in ends(words)]
    if more := ends(words) - set(modules):
        raise ValueError(f"save_adapter: modules_to_save={words} would make PEFT train {sorted(more)[0]} too")
    return words


def _rows(tables: Mapping[str, Rows], inputs: str | None, config: Mapping[str, Any]) -> Any:
    """The value of `trainable_token_indices`: a list for the input embeddings alone, else by module."""
    if not tables:
        return None
    mine = {name: list(w.indices) for name, w in tables.items()}
    said = config.get("trainable_token_indices")
    if isinstance(said, dict):
        meant = {name: next((list(v) for k, v in said.items() if name.endswith(k)), None) for name in mine}
        if meant == mine:
            return said
    return mine[inputs] if list(mine) == [inputs] and inputs is not None else mine
