"""`Program`: a module of torch as a pytree, its leaves under the module's own names, and the interpreter of its graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ...config.config import labels
from ...core.frozen import Frozen
from ...core.tree import join, near
from ...core.weight import Slot, slots
from ...names.rules import transposed
from ...nn.output import Output
from ...registry.family import Family
from .graph import DType, Graph, Node, Ref, WeightOf, computed_dtype, missing_operators
from .lengths import run_fitting
from .ops import Turned, as_dense, torch_op
from .roles import slot_of

AGAIN = frozenset(["architectures", "dtype", "torch_dtype"])  # of `config.json`: what `save` says anew
NO_FAMILY = "torch"  # the model_type of a module that has no config of its own


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
    """The config of a converted module: the content of its `config.json` (if it is one of transformers) and its program, or
    those of `others`, longer inputs where it has one for each length."""

    graph: Graph
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()
    others: tuple[Graph, ...] = ()

    @property
    def model_type(self) -> str:
        return self.extra.get("model_type", NO_FAMILY)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("extra", "graph"):  # asked while it is being copied, before it has fields
            raise AttributeError(name)
        if name in self.extra:
            return self.extra[name]
        raise AttributeError(f"the config of a {self.graph.info.get('class')} has no {name!r}")

    @property
    def family(self) -> Family:
        """What `load` and `save` ask: one architecture, one task, the module's own names."""
        graph = self.graph
        name, task = str(graph.info.get("class")), str(graph.info.get("task"))
        rules = [transposed(w.path) for w in graph.weights if w.turned]
        return Family(
            model_type=self.model_type,
            config=type(self),
            tasks={task: abstract_program},
            architectures={name: task},
            names=lambda model: rules,
            ignore=frozenset(),
            ignore_tensors=lambda config: (),
            prefix="",
            aliases={},
            optional=(),
            settle=lambda config, names: config,
            modules=lambda model: rules,
        )

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in data.items() if name not in ("graph", "others")}


class Part:
    """A part of a converted module, as a pytree: its parameters, buffers and parts under their own names.

    `part.weight` and `part["0"]` are the children; `facts` says what a leaf is for.
    """

    __slots__ = ("_facts", "_names", "_values")
    _names: tuple[str, ...]
    _values: tuple[Any, ...]
    _facts: tuple[Slot | None, ...]

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...], facts: tuple[Slot | None, ...]) -> None:
        for name, value in zip(("_names", "_values", "_facts"), (names, values, facts), strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and name in self._names:
            return self._values[self._names.index(name)]
        raise AttributeError(f"the module has no {name!r} here. {near(name, self._names)}")

    def __getitem__(self, name: str | int) -> Any:
        return getattr(self, str(name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(
            f"a converted module is immutable: ef.with_params gives a new one ({name})"
        )

    def __reduce__(self) -> Any:
        return Part, (self._names, self._values, self._facts)

    def __repr__(self) -> str:
        return f"Part({', '.join(self._names)})"

    def tree_flatten_with_keys(self) -> Any:
        keys = [jtu.GetAttrKey(name) for name in self._names]
        return list(zip(keys, self._values, strict=True)), (self._names, self._facts)

    def tree_flatten(self) -> Any:
        return self._values, (self._names, self._facts)

    @classmethod
    def tree_unflatten(cls, aux: Any, values: Any) -> Part:
        return cls(aux[0], tuple(values), aux[1])


class Program:
    """A module of torch as an immutable pytree: made by [`easyfn.from_torch`][] of its `example_inputs`.

    Leaves have the module's own parameter names and layout (`model.fc.weight`), but `(out, in)` where the module keeps a
    matrix the other way round. `config.graph` is what it computes: data, not code. Call it by [`easyfn.forward`][] with
    the module's own argument names.
    """

    __slots__ = ("_facts", "_names", "_values", "config")
    _names: tuple[str, ...]
    _values: tuple[Any, ...]
    _facts: tuple[Slot | None, ...]
    config: ProgramConfig

    def __init__(
        self, names: tuple[str, ...], values: tuple[Any, ...], facts: tuple[Slot | None, ...], config: ProgramConfig
    ) -> None:
        fields = ("_names", "_values", "_facts", "config")
        for name, value in zip(fields, (names, values, facts, config), strict=True):
            object.__setattr__(self, name, value)

    __getattr__ = Part.__getattr__
    __getitem__ = Part.__getitem__
    __setattr__ = Part.__setattr__

    def __reduce__(self) -> Any:
        return Program, (self._names, self._values, self._facts, self.config)

    def __repr__(self) -> str:
        return f"Program({self.config.graph.info.get('class')}: {self.config.graph!r})"

    def tree_flatten_with_keys(self) -> Any:
        keys = [jtu.GetAttrKey(name) for name in self._names]
        return list(zip(keys, self._values, strict=True)), (self._names, self._facts, self.config)

    def tree_flatten(self) -> Any:
        return self._values, (self._names, self._facts, self.config)

    @classmethod
    def tree_unflatten(cls, aux: Any, values: Any) -> Program:
        return cls(aux[0], tuple(values), aux[1], aux[2])

    def __call__(self, **inputs: Any) -> Any:
        return run(self, inputs)


jtu.register_pytree_with_keys_class(Part)
jtu.register_pytree_with_keys_class(Program)


@slots.register(Part, Program)
def _(part: Part | Program) -> dict[str, Slot]:
    return {name: fact for name, fact in zip(part._names, part._facts, strict=True) if fact is not None}


# ---- the tree of a graph


def build_tree(config: ProgramConfig, leaves: Mapping[str, Any]) -> Program:
    """The pytree of a program with `leaves` by name."""
    root: dict[str, Any] = {}
    facts: dict[str, Slot] = {}
    for weight in config.graph.weights:
        *parents, last = weight.path.split(".")
        at = root
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = leaves[weight.path]
        facts[weight.path] = slot_of(weight)

    def parts(node: dict[str, Any], path: str) -> tuple[Any, Any, Any]:
        names = tuple(node)
        values = tuple(Part(*parts(v, join(path, n))) if isinstance(v, dict) else v for n, v in node.items())
        return names, values, tuple(None if isinstance(node[n], dict) else facts[join(path, n)] for n in names)

    return Program(*parts(root, ""), config)


def abstract_program(config: ProgramConfig) -> Program:
    """The pytree of a program with `jax.ShapeDtypeStruct` leaves."""

    def one(w: WeightOf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(w.shape[::-1] if w.turned else w.shape, computed_dtype(w.dtype))

    return build_tree(config, {w.path: one(w) for w in config.graph.weights})


def leaf_at(program: Program, path: str) -> Any:
    node: Any = program
    for name in path.split("."):
        node = node[name]
    return node


# ---- running it


def run(program: Program, inputs: Mapping[str, Any]) -> Any:
    """The module's result for `inputs` by the names of its arguments: in its own structure, `Output` for transformers'."""
    graphs = (program.config.graph, *program.config.others)
    return run_fitting(graphs, inputs, lambda graph, given: run_graph(program, graph, given))


def run_graph(program: Program, graph: Graph, inputs: Mapping[str, Any]) -> Any:
    """The result of one of the module's programs."""
    values: list[Any] = list(bound_inputs(graph, inputs))
    for w in graph.weights:
        weight = leaf_at(program, w.path)
        values.append(Turned(weight) if w.turned else weight)
    values += [constant(array) for array in graph.constants]
    with jax.numpy_rank_promotion(
        "allow"
    ):  # torch's way of broadcasting, whatever the caller wants for code of his own
        for node, last in zip(graph.nodes, last_uses(graph), strict=True):
            values.append(evaluate(node, values))
            for number in last:
                values[number] = None
    return results(graph.result, values)


def constant(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array)


def evaluate(node: Node, values: list[Any]) -> Any:
    """One operator. What goes wrong in it is told with its name and the line of the module."""
    try:
        operator = torch_op[node.op]
    except KeyError:
        raise NotImplementedError(missing_operators([node], [node.op])) from None

    def given(arg: Any, slot: bool) -> Any:
        if isinstance(arg, Ref):
            value = values[arg.number]
            return (
                value
                if slot or isinstance(value, (int, float, bool, list, tuple)) or value is None
                else as_dense(value)
            )
        if isinstance(arg, tuple):
            return [given(a, False) for a in arg]
        return computed_dtype(arg.name) if isinstance(arg, DType) else arg

    args = [given(arg, n in operator.weights) for n, arg in enumerate(node.args)]
    kwargs = {name: given(arg, False) for name, arg in node.kwargs}
    try:
        with jax.named_scope(node.op.split(".")[1] if "." in node.op else node.op):
            return operator.function(*args, **kwargs)
    except Exception as error:
        error.add_note(f"in {node.op}, which comes from {node.where or 'an unknown place'} of the module")
        raise


_last_uses: dict[int, tuple[Graph, list[list[int]]]] = {}


def last_uses(graph: Graph) -> list[list[int]]:
    """After each node, the values that no later one needs: eagerly run, they are freed."""
    found = _last_uses.get(id(graph))
    if found is not None and found[0] is graph:
        return found[1]
    seen = set(_refs(graph.result))
    out: list[list[int]] = []
    for node in reversed(graph.nodes):
        mine = {*_refs(node.args), *_refs(tuple(v for _, v in node.kwargs))}
        out.append([n for n in mine if n not in seen])
        seen |= mine
    out.reverse()
    _last_uses.clear()
    _last_uses[id(graph)] = (graph, out)
    return out


def _refs(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, tuple):
        for v in value:
            yield from _refs(v)


FIELDS = frozenset(f.name for f in dataclasses.fields(Output))


def results(result: Any, values: list[Any]) -> Any:
    kind, rest = result
    if kind == "value":
        return as_dense(values[rest.number]) if isinstance(rest, Ref) else rest
    if kind == "tuple":
        return tuple(results(r, values) for r in rest)
    found = {name: results(r, values) for name, r in rest}
    return Output(**found) if kind == "output" and set(found) <= FIELDS else found


# ---- inputs


def bound_inputs(graph: Graph, inputs: Mapping[str, Any]) -> list[jax.Array]:
    """The inputs in order, of the dtypes and sizes that the program takes; the error says what is wrong with which."""
    known = [i.name for i in graph.inputs]
    if unknown := [name for name in inputs if name not in known]:
        raise TypeError(
            f"forward: {graph.info.get('class')} takes no {', '.join(unknown)}; it was converted with {', '.join(known)}. "
            "Convert it again with example_inputs that hold what you need"
        )
    out: list[jax.Array] = []
    sizes: dict[str, tuple[int, str]] = {}
    given = {name: jnp.asarray(v) for name, v in inputs.items() if v is not None}
    for wanted in graph.inputs:
        value = given.get(wanted.name)
        if value is None:
            value = _left_out(wanted, sizes)
        integer, asked = jnp.issubdtype(value.dtype, jnp.floating), computed_dtype(wanted.dtype)
        if integer and not jnp.issubdtype(asked, jnp.inexact):
            raise TypeError(f"forward: {wanted.name} holds {value.dtype}, and the module takes {wanted.dtype}")
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            value = value.astype(asked)
        if value.ndim != len(wanted.shape):
            raise ValueError(f"forward: {wanted.name} has shape {value.shape}; the module takes {_shown(wanted.shape)}")
        for axis, (have, want) in enumerate(zip(value.shape, wanted.shape, strict=True)):
            _check_size(graph, wanted, axis, have, want, sizes)
        out.append(value)
    return out


def optional(name: str) -> bool:
    """Whether an input may be left out: masks, which then hide nothing, and token types, which are then 0."""
    return name.endswith("attention_mask") or name == "token_type_ids"


def _left_out(wanted: Any, sizes: dict[str, tuple[int, str]]) -> jax.Array:
    """A mask that is not given hides nothing."""
    known = lambda s, n: sizes[s][0] if s in sizes else next(iter(sizes.values()))[0] if n == 0 and sizes else s
    shape = [
        known(s, n) if isinstance(s, str) else s for n, s in enumerate(wanted.shape)
    ]  # of the rows of the first input
    if wanted.name.endswith("attention_mask") and all(isinstance(s, int) for s in shape):
        return jnp.ones(shape, computed_dtype(wanted.dtype))
    if wanted.name == "token_type_ids" and all(isinstance(s, int) for s in shape):
        return jnp.zeros(shape, computed_dtype(wanted.dtype))
    raise TypeError(f"forward: {wanted.name} {_shown(wanted.shape)} is missing: the module was converted with it")


def _check_size(
    graph: Graph, wanted: Any, axis: int, have: int, want: int | str, sizes: dict[str, tuple[int, str]]
) -> None:
    if isinstance(want, int):
        if have != want:
            raise ValueError(
                f"forward: axis {axis} of {wanted.name} is {have}, and the program was made for {want} only. Convert the "
                "module again with example_inputs of that size, or with lengths=[...]"
            )
        return
    _, largest = graph.sizes.get(want, (0, None))
    if largest is not None and have > largest:
        raise ValueError(f"forward: axis {axis} of {wanted.name} is {have}; the module takes at most {largest}")
    before = sizes.setdefault(want, (have, f"axis {axis} of {wanted.name}"))
    if before[0] != have and want.isidentifier():
        raise ValueError(
            f"forward: axis {axis} of {wanted.name} is {have}, and {before[1]} is {before[0]}: they must agree"
        )


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(str(s) for s in shape)})"


def config_of(
    graph: Graph,
    data: Mapping[str, Any] | None,
    generation: Mapping[str, Any] | None = None,
    others: tuple[Graph, ...] = (),
) -> ProgramConfig:
    """The config of a program from the content of a `config.json`, if there is one."""
    kept = {k: v for k, v in labels(dict(data or {})).items() if k not in AGAIN}
    if kept.get("model_type") == NO_FAMILY:
        del kept["model_type"]
    return ProgramConfig(graph, Frozen(kept), Frozen(generation or {}), others)
