"""How PEFT names modules and chooses them: its rules for `adapter_config.json`, in both directions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core.slots import find_slots
from ...core.trainable import is_adapter
from ...core.tree import expand
from ...names.layout import StackedModules, in_rows
from ...names.rules import Rule, file_name, tensors_for
from ...registry.family import family_of

Shape = tuple[int, ...]
ADAPTED = ("linear", "head", "router", "embedding")  # modules that hold one matrix


def in_memory(path: str, role: str, shape: Shape, rules: Sequence[Rule]) -> tuple[str, ...]:
    """The tensors of transformers' module that are the array at `path`: one, or several that ours joins.

    A mixture of experts lies in memory as ours does, whatever older files hold.
    """
    if role in ("experts", "router"):
        return (file_name(path, [r for r in rules if r.ours.endswith(("{rest}", "{tail}"))]),)
    return tensors_for(path, shape, rules).names


def module_of(path: str, role: str, shape: Shape, rules: Sequence[Rule]) -> tuple[str, str | None]:
    """The module of a path as transformers names it, and the parameter where PEFT adapts that and not the module."""
    names = in_memory(path, role, shape, rules)
    layout = tensors_for(path, shape, rules).layout if role == "experts" else None
    if layout is not None and (in_rows(layout) or isinstance(layout, StackedModules)):
        how = "rows of one matrix" if in_rows(layout) else "a module for each"
        raise ValueError(
            f"save_adapter: {path}: transformers has the experts as {how}, on which PEFT has no adapter as ours is. Leave them "
            "out of the pattern, or save the whole model: ef.save(ef.merge_lora(model), directory)"
        )
    if len(names) != 1:
        raise ValueError(f"save_adapter: {path} is several modules in transformers ({', '.join(names)})")
    module, _, leaf = names[0].rpartition(".")
    return module, leaf if by_parameter(names[0], role) else None


def by_parameter(name: str, role: str) -> bool:
    """Whether PEFT adapts a parameter (`target_parameters`) and not a module: of a mixture, and what is no module's `weight`."""
    return role in ("experts", "router") or not f".{name}".endswith(".weight")


def is_transposed(path: str, rules: Sequence[Rule]) -> bool:
    """Whether transformers holds `(in, out)`."""
    return tensors_for(path, (0, 0), rules).transposed


def modules(model: Any, roles: tuple[str, ...] = ADAPTED) -> list[str]:
    """Every module of the model that PEFT could put a LoRA on."""
    rules = family_of(model).modules(model)
    return [
        names[0].rpartition(".")[0]
        for f in find_slots(model, roles)
        for path in expand(f.path)
        if len(names := in_memory(path, f.slot.role, (1, 1), rules)) == 1
        and (f.slot.role == "router" or not by_parameter(names[0], f.slot.role))
    ]


def tensor_names(model: Any) -> list[str]:
    """Every tensor of transformers' model that ours has, by its name in memory."""
    rules = family_of(model).modules(model)
    return [
        n for f in find_slots(model) for path in expand(f.path) for n in in_memory(path, f.slot.role, (1, 1), rules)
    ]


def shortest(found: Iterable[str], every: Iterable[str]) -> list[str]:
    """The shortest list that PEFT expands to these modules: last names where all of that name are, else whole paths."""
    found = list(found)
    last = lambda name: name.rsplit(".", 1)[-1]
    mine, counts = Counter(map(last, found)), Counter(map(last, every))
    whole = {name for name, count in mine.items() if count == counts[name] and not name.isdigit()}
    return sorted(whole | {m for m in found if last(m) not in whole})


def targets(model: Any, found: Iterable[str]) -> list[str]:
    """`target_modules` for these modules of a model."""
    return shortest(found, modules(model))


def matches_target(config: Mapping[str, Any], module: str) -> bool:
    """PEFT's `check_target_module_exists`: whether the settings put an adapter on a module."""
    wanted = config.get("target_modules")
    if _is_named(config.get("exclude_modules"), module) or _is_saved(config, module) or not wanted:
        return False
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    if module in wanted:
        return True
    return _is_named(wanted, module) and _is_in_layers(config, module)


def matches_parameter(config: Mapping[str, Any], name: str) -> bool:
    """Whether `target_parameters` names a parameter."""
    return _is_named(config.get("target_parameters"), name)


def _is_named(wanted: Any, name: str) -> bool:
    if not wanted:
        return False
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == w or name.endswith(f".{w}") for w in wanted)


def _is_saved(config: Mapping[str, Any], module: str) -> bool:
    return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in config.get("modules_to_save") or ())


def _is_in_layers(config: Mapping[str, Any], module: str) -> bool:
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    words = config.get("layers_pattern") or [None]
    for word in [words] if isinstance(words, str) else words:
        found = re.match(r".*?\.[^.]*\.(\d+)\." if word is None else rf"(?:^|.*?\.){word}\.(\d+)\.", module)
        if found:
            return int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False


def rank_and_scale(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """The rank of a module and what its change is multiplied with. The first pattern that fits holds."""

    def pick(patterns: Mapping[str, Any] | None, default: Any) -> Any:
        fits = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name))
        return next(fits, default)

    rank = pick(config.get("rank_pattern"), config.get("r", 8))
    alpha = pick(config.get("alpha_pattern"), config.get("lora_alpha", 8))
    return rank, float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def short(value: float) -> float | int:
    """`scale * rank` may miss the integer that it was by a bit."""
    return round(value) if abs(value - round(value)) < 1e-6 * max(1.0, abs(value)) else value


def transposed_targets(model: Any) -> bool:
    """`fan_in_fan_out`: whether an adapted module is a Conv1D, which holds `(in, out)`."""
    rules = family_of(model).modules(model)
    adapted = (expand(f.path)[0] for f in find_slots(model, ("linear",)) if is_adapter(f.weight))
    return any(
        is_transposed(p, rules) for p in adapted if not by_parameter(in_memory(p, "linear", (1, 1), rules)[0], "")
    )
