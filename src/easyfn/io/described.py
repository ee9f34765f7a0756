"""Whether a model is still what its config describes: what is written otherwise, nothing can load."""

from __future__ import annotations

from typing import Any

from ..core.slots import find_slots
from ..core.tree import expand, is_leaf, leaves
from ..core.weight import shape_of
from ..registry.family import Family, build
from ..tasks.task import task


def as_described(model: Any, known: Family, verb: str = "save") -> None:
    """Raises `ValueError` if a model has other weights than one that is built of its config, naming paths and ways out."""
    mine, best = _weights(model), None
    first = task(model)
    for kind in sorted(known.tasks, key=lambda kind: kind != first):
        wanted = _weights(build(model.config, kind))
        if mine == wanted:
            return
        shared = len(mine.items() & wanted.items())
        if best is None or shared > best[0]:
            best = (shared, wanted)
    if best is None:
        return
    wanted = best[1]
    more, less = sorted(mine.keys() - wanted.keys()), sorted(wanted.keys() - mine.keys())
    other = [f"{p} is {mine[p]}, not {wanted[p]}" for p in sorted(mine.keys() & wanted.keys()) if mine[p] != wanted[p]]
    said = [
        f"{name}: {_some(paths)}" for name, paths in (("missing", less), ("new", more), ("changed", other)) if paths
    ]
    raise ValueError(
        f"{verb}: the model is not what its config ({type(model.config).__name__}) describes, so nothing could load what "
        f"is written of it. {'; '.join(said)}. {_way_out(more, less)}"
    )


def _way_out(more: list[str], less: list[str]) -> str:
    if more and less:
        return (
            "A layer that was wrapped comes off again with eqx.tree_at; or save the tensors alone, "
            "ef.to_state_dict(model), or register the architecture with ef.family(...)"
        )
    if less:
        return "Layers are dropped together with their config by ef.prune_layers(model, keep)"
    return (
        "Weights and config change together: ef.resize_embeddings, ef.prune_layers, or a family of your own, ef.family"
    )


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _weights(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of every single layer, whatever format it is in."""
    found: dict[str, tuple[int, ...]] = {}
    packed = {f.path: tuple(shape_of(f.weight)) for f in find_slots(model) if not is_leaf(f.weight)}
    inside = tuple(f"{path}." for path in packed)
    plain = {path: tuple(leaf.shape) for path, leaf in leaves(model).items() if not path.startswith(inside)}
    for path, shape in {**plain, **packed}.items():
        singles = expand(path)
        found |= {single: shape if singles == [path] else shape[1:] for single in singles}
    return found
