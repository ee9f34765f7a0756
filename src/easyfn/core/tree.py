"""Models as trees: dotted paths, children, selection by pattern, replacement.

A path is what Hugging Face would print: `model.layers.3.self_attn.q_proj.weight`. A run of layers that
was stacked prints as a Python slice in the place of the index: `model.layers.0:32:1.self_attn...`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.tree_util as jtu

from .habits import no_path

Pattern = str | Sequence[str] | Callable[[str, Any], bool]


def _drawn(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    """How treescope draws what is no dataclass, where somebody has it."""
    from treescope import repr_lib

    parts = {name: getattr(node, name) for name in type(node).__slots__}
    return repr_lib.render_object_constructor(type(node), parts, path, subtree_renderer)


def _no_part(run: Any, name: str) -> Any:
    raise AttributeError(
        f"{type(run).__name__!r} object has no attribute {name!r}: it is a run of layers, which ef.unstack(model) and "
        "ef.unpipeline(model) take apart again"
    )


@jtu.register_pytree_with_keys_class
class Stacked:
    """A run of alike layers whose arrays carry a leading axis: layer `start + j + i * period` is `blocks[j][i]`.

    Made by [`easyfn.stack`][], taken apart by [`easyfn.unstack`][], run by `easyfn.nn.fold`.
    """

    __slots__ = ("blocks", "repeats", "start")
    __treescope_repr__ = _drawn
    __getattr__ = _no_part

    def __init__(self, blocks: Sequence[Any], start: int, repeats: int) -> None:
        self.blocks = tuple(blocks)
        self.start = start
        self.repeats = repeats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "a stack of layers is run by ef.nn.fold, and this model calls its layers one by one: ef.unstack(model)"
        )

    @property
    def num_layers(self) -> int:
        return len(self.blocks) * self.repeats

    def names(self) -> list[str]:
        period = len(self.blocks)
        return [f"{self.start + j}:{self.start + period * self.repeats}:{period}" for j in range(period)]

    def tree_flatten_with_keys(self):
        keys = [jtu.GetAttrKey(name) for name in self.names()]
        return list(zip(keys, self.blocks, strict=True)), (self.start, self.repeats)

    def tree_flatten(self):
        return self.blocks, (self.start, self.repeats)

    @classmethod
    def tree_unflatten(cls, aux, blocks):
        return cls(blocks, *aux)

    def __repr__(self) -> str:
        return f"Stacked(layers {self.start} to {self.start + self.num_layers - 1}, period {len(self.blocks)}: {self.blocks})"


@jtu.register_pytree_with_keys_class
class Pipelined:
    """A stacked run of layers in `stages`, through which a batch goes in `microbatches`: what stage of a mesh holds what.

    `rounds` are runs one after the other, each a [`Stacked`][easyfn.Stacked]; of each, a stage holds an equal part, so
    that a microbatch passes the stages once per round. `axis` names the mesh's axis of stages. Made by
    [`easyfn.pipeline`][], taken apart by [`easyfn.unpipeline`][], run by `easyfn.nn.fold`.
    """

    __slots__ = ("axis", "microbatches", "rounds", "stages")
    __treescope_repr__ = _drawn
    __getattr__ = _no_part

    def __init__(self, rounds: Sequence[Stacked], stages: int, microbatches: int, axis: str = "pp") -> None:
        self.rounds = tuple(rounds)
        self.stages = stages
        self.microbatches = microbatches
        self.axis = axis

    @property
    def num_layers(self) -> int:
        return sum(run.num_layers for run in self.rounds)

    def tree_flatten_with_keys(self):
        keys = [jtu.SequenceKey(i) for i in range(len(self.rounds))]
        return list(zip(keys, self.rounds, strict=True)), (self.stages, self.microbatches, self.axis)

    def tree_flatten(self):
        return self.rounds, (self.stages, self.microbatches, self.axis)

    @classmethod
    def tree_unflatten(cls, aux, rounds):
        return cls(rounds, *aux)

    def __repr__(self) -> str:
        return f"Pipelined({self.stages} stages, {self.microbatches} microbatches: {self.rounds})"


def layers_in(part: Any) -> int:
    """How many layers an element of a model's tuple of layers stands for."""
    return part.num_layers if isinstance(part, (Stacked, Pipelined)) else 1


def is_leaf(node: Any) -> bool:
    """Whether `node` is an array, a tracer, an abstract array or any other value that is no container."""
    return jtu.all_leaves([node])


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, a tracer or an abstract array: trees of other packages hold numbers and functions too."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def as_shapes(tree: Any) -> Any:
    """`tree` with shapes in the place of arrays; other leaves stay."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf, tree)


def key_name(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def children(node: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The named children of one level, and the treedef that rebuilds the node from new ones."""
    pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if isinstance(node, (tuple, list)) and not hasattr(node, "_fields"):
        names, index = [], 0  # the number of the layer, not of the element: a Stacked counts for many
        for _, child in pairs:
            names.append("" if isinstance(child, (Stacked, Pipelined)) else str(index))
            index += layers_in(child)
        return list(zip(names, [child for _, child in pairs], strict=True)), treedef
    if isinstance(node, Pipelined):  # each round names its own layers
        return [("", child) for _, child in pairs], treedef
    return [(key_name(path[0]), child) for path, child in pairs if path], treedef


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def rebuild(node: Any, change: Callable[[str, Any], Any]) -> Any:
    """`node` with every child replaced by `change(name, child)`; the same object if no child changed."""
    if is_leaf(node):
        return node
    pairs, treedef = children(node)
    new = [change(name, child) for name, child in pairs]
    if all(a is b for a, (_, b) in zip(new, pairs, strict=True)):
        return node
    return treedef.unflatten(new)


def nodes(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node with its path, parents first. `TypeError` where a path (to files) is given for the model."""
    if not path:
        no_path(model)
    yield path, model
    if not is_leaf(model):
        for name, child in children(model)[0]:
            yield from nodes(child, join(path, name))


def leaves(model: Any) -> dict[str, Any]:
    """Every array of the model by its dotted path."""
    found = {path: node for path, node in nodes(model) if is_leaf(node) and hasattr(node, "shape")}
    return found


def replace(model: Any, new: dict[str, Any]) -> Any:
    """`model` with the nodes at the given paths replaced; a path that is not there is an error."""
    used: set[str] = set()

    def go(path: str, node: Any) -> Any:
        if path in new and path not in used:
            used.add(path)
            return new[path]
        return rebuild(node, lambda name, child: go(join(path, name), child))

    result = go("", model)
    if lost := [p for p in new if p not in used]:
        raise KeyError(f"no such path in the model: {lost[0]!r}. {near(lost[0], [p for p, _ in nodes(model)])}")
    return result


def at(model: Any, path: str) -> Any:
    """The node at a dotted path."""
    for found, node in nodes(model):
        if found == path:
            return node
    raise KeyError(f"no such path in the model: {path!r}. {near(path, [p for p, _ in nodes(model)])}")


def near(word: str, words: Iterable[str]) -> str:
    """A sentence with the closest known spellings."""
    known = [w for w in words if w]
    if run := next((w for w in known if w != word and word in expand(w)), None):
        return f"It lies in the stacked run {run!r}: ef.unstack(model) has each layer apart."
    close = closest(word, known)
    return f"Near misses: {', '.join(close)}." if close else f"Known: {', '.join(known[:8])}."


def closest(word: str, words: Iterable[str]) -> list[str]:
    """The four words most like `word`, as a whole or in as many neighbouring parts of their path as it has."""
    size = word.count(".") + 1

    @functools.cache
    def alike(piece: str) -> float:
        return difflib.SequenceMatcher(None, word, piece).ratio()

    def score(path: str) -> float:
        parts = path.split(".")
        return max(alike(path), *(alike(".".join(parts[i : i + size])) for i in range(len(parts))))

    scores = {w: score(w) for w in words}
    return sorted((w for w in scores if scores[w] >= 0.5), key=lambda w: -scores[w])[:4]


_slice = re.compile(r"(?<![^.])(\d+):(\d+):(\d+)(?![^.])")


def expand(path: str) -> list[str]:
    """The paths of the single layers that a path through a stacked run stands for."""
    match = _slice.search(path)
    if not match:
        return [path]
    start, stop, step = map(int, match.groups())
    return [path[: match.start()] + str(i) + path[match.end() :] for i in range(start, stop, step)]


def matches(pattern: Pattern, path: str, node: Any) -> bool:
    """Whether a pattern selects a path: a regular expression searched in it, a list of such, or a predicate.

    A path through a stacked run must be selected for all of its layers or for none.
    """
    try:
        compiled = (
            None if callable(pattern) else [re.compile(p) for p in ([pattern] if isinstance(pattern, str) else pattern)]
        )
    except (re.error, TypeError) as error:
        raise ValueError(
            f"the pattern {pattern!r} is none: a regular expression like 'q_proj|v_proj', a list of such, or a "
            f"function of (path, node) ({error})"
        ) from None

    def hit(p: str) -> bool:
        return bool(pattern(p, node)) if compiled is None else any(c.search(p) for c in compiled)  # type: ignore[operator]

    hits = [hit(p) for p in expand(path)]
    if any(hits) and not all(hits):
        raise ValueError(
            f"the pattern {pattern!r} selects only some layers of the stacked run {path!r}. "
            "Call ef.unstack(model) first, transform, then ef.stack(model) again."
        )
    return all(hits)


def nothing_matched(verb: str, pattern: Any, candidates: Iterable[str]) -> ValueError:
    """The error for a pattern that selected nothing."""
    known = sorted({re.sub(r"(?<![^.])[\d:]+(?![^.])", "*", c) for c in candidates})
    asked = [pattern] if isinstance(pattern, str) else pattern if isinstance(pattern, (list, tuple)) else []
    spelt = [re.sub(r"[\\^$()\[\]?+*]", "", word) for one in asked for word in str(one).split("|")]
    words = [re.sub(r"(?<![^.])\d+(?![^.])", "*", word.strip(".")) for word in spelt]
    close = dict.fromkeys(path for word in words if word for path in closest(word, known))
    if not known:
        return ValueError(
            f"{verb}: this model has no weight slots for it. Layers of Equinox's own are exchanged by ef.adopt(model); one "
            "of yours says which of its fields are weights with @ef.slots.register(Layer)"
        )
    hint = f"Near misses: {', '.join(list(close)[:4])}. " if close else ""
    return ValueError(
        f"{verb}: the pattern {pattern!r} matches nothing in this model. {hint}"
        f"It can reach: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}."
    )


def is_abstract(tree: Any) -> bool:
    """Whether any leaf is a `jax.ShapeDtypeStruct`."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jtu.tree_leaves(tree))


def lift(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, but evaluated abstractly when an argument is abstract, and else waited for.

    Verbs that compute weight by weight wait for each: on a mesh of CPU devices XLA deadlocks once 32 computations that
    reduce over devices are queued.
    """

    def lifted(*args: Any) -> Any:
        if is_abstract(args):
            return jax.eval_shape(function, *args)
        result = function(*args)
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jtu.tree_leaves(result))
        return result if traced else jax.block_until_ready(result)

    return lifted
