"""Walking a model by its weight slots: what `quantize`, `apply_lora` and `shard` are written with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .habits import no_path
from .tree import Pattern, children, expand, is_array, is_leaf, join, matches, nodes, nothing_matched, rebuild
from .verb import NodeVerb
from .weight import Slot, slots

LINEAR = ("linear", "experts")  # the roles that "all-linear" selects


class Found(NamedTuple):
    """One weight slot of a model: `path` ends in the field's name, `layer` is the path of its layer."""

    path: str
    layer: str
    slot: Slot
    weight: Any


def find_slots(model: Any, roles: tuple[str, ...] | None = None) -> list[Found]:
    """Every filled weight slot of a model, or those of the given roles, in the order of the model.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.find_slots(model, ("head",))[0].path == "lm_head.weight"
    ```
    """
    found = []
    for path, node in nodes(model):
        for name, slot in slots(node).items():
            weight = getattr(node, name)
            if weight is not None and (roles is None or slot.role in roles):
                found.append(Found(join(path, name), path, slot, weight))
    return found


def dtype_in(model: Any, dtype: Any) -> Callable[[str], Any]:
    """For each floating point array of a model that is to be in `dtype`, by its path, the dtype it shall have: float32 for
    those whose slot says so."""
    name = str(np.dtype(dtype))
    wide = {f.path for f in find_slots(model) if name in f.slot.float32}
    return lambda path: np.dtype(np.float32) if path in wide else np.dtype(dtype)


def select_slots(verb: str, model: Any, pattern: Pattern, roles: tuple[str, ...]) -> list[Found]:
    """The slots that a pattern selects.

    `"all-linear"`, alone or in a list, is every slot of role `linear` and `experts`: never a head, a router or an
    embedding. Other patterns search in the dotted path of the slot, and reach the given `roles`. Selecting nothing is an
    error, and matrices that the pattern selects too and no layer has declared a weight are logged.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    found = ef.select_slots("my_verb", model, "q_proj", ("linear",))
    assert [f.path for f in found][0] == "model.layers.0.self_attn.q_proj.weight"
    ```
    """
    several: list[Any] = list(pattern) if isinstance(pattern, (list, tuple)) else [pattern]
    every = LINEAR if "all-linear" in several else ()
    rest = [p for p in several if p != "all-linear"] if every else pattern
    chosen = [
        f
        for f in find_slots(model, (*roles, *every))
        if f.slot.role in every or (f.slot.role in roles and matches(rest, f.path, f.weight))
    ]
    bare = {path: leaf for path, leaf in _undeclared("", model) if every or matches(rest, path, leaf)}
    if not chosen:
        error = nothing_matched(verb, pattern, [f.path for f in find_slots(model, roles)])
        said = "" if not bare or "ef.adopt" in str(error) else f" {next(iter(bare))} is in no weight slot: {_DECLARE}."
        raise ValueError(f"{error}{said}")
    if over := [path for path, leaf in bare.items() if _is_matrix(path, leaf)]:
        more = f" and {len(over) - 4} more" if len(over) > 4 else ""
        logging.getLogger("easyfn").warning(
            "%s: %s%s stay as they are: arrays in no weight slot. %s (a role of 'other' says that it is none).",
            verb,
            ", ".join(over[:4]),
            more,
            _DECLARE,
        )
    return chosen


_DECLARE = (
    "ef.adopt(model) exchanges layers of Equinox's own, and @ef.slots.register(Layer) says which fields of one of yours "
    "are weights"
)


def _undeclared(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The arrays that are in no weight slot."""
    if is_leaf(node):
        if is_array(node):
            yield path, node
        return
    declared = slots(node)
    for name, child in children(node)[0]:
        if name not in declared:
            yield from _undeclared(join(path, name), child)


def _is_matrix(path: str, leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim - (expand(path) != [path]) > 1


def map_slots(verb: NodeVerb[..., Any], model: Any, how: Callable[[str, Slot, Any], Any]) -> Any:
    """`model` with `how(path, slot, weight)` in every filled slot; `how` returns the same object to leave a slot alone.

    A layer whose type is registered with `verb` is given to its implementation instead.

    ```python
    import jax, easyfn as ef
    model = ef.testing.tiny()

    @ef.node_verb
    def double(model):
        return ef.map_slots(double, model, lambda path, slot, weight: 2 * weight)

    assert ef.forward(double(model), jax.numpy.array([[1, 2]])).logits.shape == (1, 2, 64)
    ```
    """

    no_path(model)

    def go(path: str, node: Any) -> Any:
        if is_leaf(node):
            return node
        facts = slots(node)
        if verb.knows(type(node)):

            def bound(weight: Any, name: str = "weight") -> Any:
                return how(join(path, name), facts.get(name, Slot("other", ())), weight)

            return verb.which(type(node))(node, bound)

        def change(name: str, child: Any) -> Any:
            if child is None:  # a slot that this layer leaves empty
                return None
            full = join(path, name)
            return how(full, facts[name], child) if name in facts else go(full, child)

        return rebuild(node, change)

    return go("", model)
