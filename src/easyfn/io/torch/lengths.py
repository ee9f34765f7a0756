"""Modules whose program is of one length only: a program for each of some lengths, over the same weights.

A loop over the tokens (Mamba, RWKV) is exported as so many steps. What lies between two lengths is padded behind, hidden by
`attention_mask`, and what comes out is cut where it is as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .graph import BadProgram, Graph, computed_dtype

Run = Callable[[Graph, Mapping[str, Any]], Any]
# In `info`: of each result the axes that are as long as the inputs; null where one is so in another way.
ALONG = "along"


def resized(tensors: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Example inputs of another length: their second axis is cut, or repeated, where it is that of the first input."""
    arrays = [v for v in tensors.values() if hasattr(v, "shape")]
    if not arrays or arrays[0].ndim < 2:
        raise ValueError(
            "from_torch: lengths= are sizes of the second axis of the inputs, and the first input has one axis"
        )
    have = arrays[0].shape[1]

    def one(x: Any) -> Any:
        if not hasattr(x, "shape") or x.ndim < 2 or x.shape[1] != have:
            return x
        return x[:, [n % have for n in range(length)]]

    return {name: one(x) for name, x in tensors.items()}


def together(graphs: Sequence[Graph], run: Run) -> tuple[Graph, ...]:
    """The programs of one module, the shortest first; which axes of its results grow is seen in their shapes."""
    graphs = sorted(graphs, key=length_of)
    shapes = []
    for graph in graphs:
        free = lambda axis, graph=graph: length_of(graph) if axis else 2  # rows, and what other inputs leave open
        inputs = {
            i.name: jax.ShapeDtypeStruct(
                tuple(free(axis) if isinstance(size, str) else size for axis, size in enumerate(i.shape)),
                computed_dtype(i.dtype),
            )
            for i in graph.inputs
        }
        shapes.append([leaf.shape for leaf in jax.tree.leaves(run(graph, inputs))])
    along = [_axes(found, [length_of(g) for g in graphs]) for found in zip(*shapes, strict=True)]
    for graph in graphs:
        graph.info[ALONG] = along
        graph._digest = None  # of what it was before
    return tuple(graphs)


def _axes(shapes: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[int] | None:
    sizes = list(zip(*shapes, strict=True)) if len({len(s) for s in shapes}) == 1 else [(0, 1)]
    grows = [n for n, size in enumerate(sizes) if len(set(size)) > 1]
    return grows if all(list(sizes[n]) == list(lengths) for n in grows) else None


def length_of(graph: Graph) -> int:
    """The length that a program is for."""
    size = graph.inputs[0].shape[1:2]
    if not size or not isinstance(size[0], int):
        raise ValueError(
            f"from_torch: lengths= are for modules of one length, and {graph.info.get('class')} takes any: leave it out"
        )
    return size[0]


def check_alike(first: Graph, others: Sequence[Graph]) -> None:
    """Raises [`easyfn.BadProgram`][] where programs, which come from a file, are not of one module."""
    parts = lambda graph: ({w.path: w for w in graph.weights}, [i.name for i in graph.inputs])
    for n, graph in enumerate(others):
        if parts(graph) != parts(first):
            raise BadProgram(f"others[{n}] has other weights or inputs than the program that it is a longer form of")
    sizes = [g.inputs[0].shape[1:2] if g.inputs else () for g in (first, *others)]
    if others and not (all(size and isinstance(size[0], int) for size in sizes) and sizes == sorted(sizes)):
        raise BadProgram(f"others: its first inputs should have fixed lengths, the shortest first, and have {sizes}")


def run_fitting(graphs: Sequence[Graph], inputs: Mapping[str, Any], run: Run) -> Any:
    """`run(graph, inputs)` of the shortest program that the inputs fit, which are padded to its length, and its result cut."""
    first = graphs[0]
    given = {name: jnp.asarray(x) for name, x in inputs.items() if x is not None}
    main = given.get(first.inputs[0].name)
    if len(graphs) == 1 or main is None or main.ndim < 2:
        return run(first, inputs)  # which says what is missing
    length = main.shape[1]
    graph = next((g for g in graphs if length_of(g) >= length), None)
    if graph is None:
        raise ValueError(
            f"forward: {first.inputs[0].name} is {length} long, and the module was converted for lengths of "
            f"{[length_of(g) for g in graphs]}: convert it again with a longer one"
        )
    if (wanted := length_of(graph)) == length:
        return run(graph, given)
    return _cut(run(graph, _padded(graph, given, length, wanted)), graph, length, wanted)


def _padded(graph: Graph, given: dict[str, jax.Array], length: int, wanted: int) -> dict[str, jax.Array]:
    mask = next((i for i in graph.inputs if i.name == "attention_mask"), None)
    if mask is None:
        raise ValueError(
            f"forward: inputs {length} long are padded to {wanted}, and the module was converted without an attention_mask, "
            "which would hide the padding. Convert it with one, or for this length too"
        )
    main = given[graph.inputs[0].name]
    given = {"attention_mask": jnp.ones(main.shape[:2], jnp.int32), **given}

    def one(x: jax.Array) -> jax.Array:
        if x.ndim < 2 or x.shape[1] != length:
            return x
        return jnp.pad(x, [(0, wanted - length) if n == 1 else (0, 0) for n in range(x.ndim)])

    return {name: one(x) for name, x in given.items()}


def _cut(result: Any, graph: Graph, length: int, wanted: int) -> Any:
    leaves, tree = jax.tree.flatten(result)
    along = graph.info.get(ALONG)
    if not isinstance(along, list) or len(along) != len(leaves) or None in along:
        raise ValueError(
            f"forward: inputs {length} long are padded to {wanted}, and how much of what comes out is padding is not known: "
            "the module's results grow otherwise than its inputs. Convert it for this length too"
        )
    for n, axes in enumerate(along):
        for axis in axes:
            leaves[n] = jax.lax.slice_in_dim(leaves[n], 0, length, axis=axis)
    return jax.tree.unflatten(tree, leaves)
