"""Walking a model by its weight slots: what `quantize`, `apply_lora` and `shard` are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ._tree import Pattern, is_leaf, join, matches, nodes, nothing_matched, rebuild
from ._verb import NodeVerb
from ._weight import Slot, slots


class Found(NamedTuple):
    """One weight slot of a model: `path` ends in the field's name, `layer` is the path of its layer."""

    path: str
    layer: str
    slot: Slot
    weight: Any


def find_slots(model: Any, roles: tuple[str, ...] | None = None) -> list[Found]:
    """Every filled weight slot of a model, or those of the given roles, in the order of the model."""
    found = []
    for path, node in nodes(model):
        for name, slot in slots(node).items():
            weight = getattr(node, name)
            if weight is not None and (roles is None or slot.role in roles):
                found.append(Found(join(path, name), path, slot, weight))
    return found


def select_slots(verb: str, model: Any, pattern: Pattern, roles: tuple[str, ...]) -> list[Found]:
    """The slots that a pattern selects.

    `"all-linear"` is every slot of role `linear` and `experts`: never a head, a router or an embedding. Other patterns search
    in the dotted path of the slot, and reach the given `roles`. Selecting nothing is an error.
    """
    if isinstance(pattern, str) and pattern == "all-linear":
        chosen = find_slots(model, ("linear", "experts"))
    else:
        chosen = [f for f in find_slots(model, roles) if matches(pattern, f.path, f.weight)]
    if not chosen:
        raise nothing_matched(verb, pattern, [f.path for f in find_slots(model, roles)])
    return chosen


def map_slots(verb: NodeVerb[..., Any], model: Any, how: Callable[[str, Slot, Any], Any]) -> Any:
    """`model` with `how(path, slot, weight)` in every filled slot; `how` returns the same object to leave a slot alone.

    A layer whose type is registered with `verb` is given to its implementation instead.
    """

    def go(path: str, node: Any) -> Any:
        if is_leaf(node):
            return node
        facts = slots(node)
        if verb.knows(type(node)):

            def bound(weight: Any, name: str = "weight") -> Any:
                return how(join(path, name), facts.get(name, Slot("other", ())), weight)

            return verb.which(type(node))(node, bound)

        def change(name: str, child: Any) -> Any:
            full = join(path, name)
            return how(full, facts[name], child) if name in facts else go(full, child)

        return rebuild(node, change)

    return go("", model)
