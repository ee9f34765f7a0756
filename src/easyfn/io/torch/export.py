"""From a module of torch to a program: `torch.export`, then the graph as plain data. Needs torch; nothing else here does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..dtypes import to_numpy
from .decompose import drop_dropout, is_plain
from .experts import operators
from .graph import Graph, Input, Node, Ref, missing_operators
from .meta import without_numbers
from .ops import torch_op
from .prepare import example_dict, prepared
from .roles import dtype_name, refs_in, task_named, weights_of
from .trace import ExportError, quiet, traced
from .values import of_the_example
from .walk import Builder, operator_name

# Kept whole, though core ATen would take them apart: what the weight slots are reached by, and what JAX does at once.
KEPT = re.compile(
    r"aten\.(linear|layer_norm|rms_norm|group_norm|scaled_dot_product_attention|conv[123]d|conv_transpose[123]d"
    r"|_?upsample_(nearest|linear|bilinear|bicubic)\w*|pixel_shuffle|pixel_unshuffle"
    r"|linalg_(inv|det|slogdet|solve|solve_triangular|cholesky|eigh|eigvalsh|svd|svdvals|qr|matrix_exp|pinv)|logdet|inverse"
    r"|cholesky|bilinear|embedding_bag|rrelu|pdist|dist)\.\w+"
)


def export(module: Any, example_inputs: Any, *, dynamic: Any = None) -> tuple[Graph, dict[str, Any]]:
    """The program of a module and its tensors by the names of the program's weights."""
    import torch

    given = example_dict(module, example_inputs)
    fixed = {name: v for name, v in given.items() if not isinstance(v, torch.Tensor)}
    tensors = {name: v for name, v in given.items() if isinstance(v, torch.Tensor)}
    structure: list[Any] = []

    class Whole(torch.nn.Module):
        """The module with a plain result: what `torch.export` gives back is a flat tuple of tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:  # by position: dynamic sizes and `**inputs` exclude each other
            found: list[Any] = []
            named = dict(zip(tensors, inputs, strict=True))
            structure[:] = [_structure(self.module(**named, **fixed), found, torch)]
            return tuple(found)

    hold = operators(torch).stop_gradient.default  # decomposing makes of `detach` an `alias`, and of `no_grad` nothing
    with prepared(module, fixed), without_numbers(torch, module) as numbers:
        if numbers is not None:
            tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
        program, by_values = traced(torch, Whole(), tensors, dynamic)
    drop_dropout(torch, program.graph_module)
    _mark_detached(torch, program.graph_module, hold)
    if not is_plain(torch, program.graph_module, operator_name):
        table = torch.export.default_decompositions()
        for overload in list(table):
            if KEPT.fullmatch(str(overload)):
                table.pop(overload)
        with quiet(), of_the_example(torch) if by_values else contextlib.nullcontext():
            program = program.run_decompositions(table)
    return _graph(torch, module, program, structure[0], list(tensors), numbers or {})


def _mark_detached(torch: Any, module: Any, hold: Any) -> None:
    for part in module.modules():
        graph = getattr(part, "graph", None)
        if graph is None:
            continue
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.detach.default:
                node.target = hold
            elif "wrap_with_set_grad_enabled" in str(node.target) and node.args[0] is False:
                for user in list(node.users):  # the parts of its result
                    if isinstance(user.meta.get("val"), torch.Tensor) and user.meta["val"].is_floating_point():
                        with graph.inserting_after(user):
                            held = graph.call_function(hold, (user,))
                        held.meta = dict(user.meta)
                        user.replace_all_uses_with(held, delete_user_cb=lambda other, held=held: other is not held)
        part.recompile()


def _structure(value: Any, found: list[Any], torch: Any) -> Any:
    """The result of a module with the numbers of its tensors: they are put into `found`."""
    if isinstance(value, torch.Tensor):
        found.append(value)
        return "value", len(found) - 1
    if isinstance(value, Mapping):
        kind = "output" if type(value).__module__.startswith("transformers") else "dict"
        kept = [(str(k), _structure(v, found, torch)) for k, v in value.items() if _tensors_in(v, torch)]
        return kind, tuple(kept)
    if isinstance(value, (tuple, list)):
        return "tuple", tuple(_structure(v, found, torch) for v in value if v is None or _tensors_in(v, torch))
    if value is None or isinstance(value, (bool, int, float, str)):
        return "value", value if value is None else (value,)
    raise TypeError(f"from_torch: the module returns a {type(value).__name__}, and a program can return arrays only")


def _tensors_in(value: Any, torch: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, Mapping):
        return any(_tensors_in(v, torch) for v in value.values())
    return isinstance(value, (tuple, list)) and any(_tensors_in(v, torch) for v in value)


# ---- the exported program as data


def _graph(
    torch: Any, module: Any, program: Any, structure: Any, asked: list[str], numbers: Mapping[str, Any]
) -> tuple[Graph, dict[str, Any]]:
    names, aliases = own_names(module)
    signature = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    kinds = torch.export.graph_signature.InputKind
    inputs: list[tuple[Any, Input]] = []
    refs: dict[Any, Any] = {}  # placeholder -> path, or the number of a constant
    constants: list[np.ndarray] = []
    constant_of: dict[Any, int] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = signature[node.name]
        target = (spec.target or "").removeprefix("module.")
        target = aliases.get(target, target)
        if spec.kind == kinds.USER_INPUT:
            if isinstance(value := node.meta.get("val"), torch.Tensor):
                inputs.append((node, Input(asked[len(inputs)], dtype_name(value.dtype), _shape(value))))
        elif target in names:
            refs[node] = target
        elif spec.kind in (kinds.PARAMETER, kinds.BUFFER, kinds.CONSTANT_TENSOR):
            source = program.state_dict if spec.target in program.state_dict else program.constants
            constant_of[node] = len(constants)
            constants.append(np.array(to_numpy(numbers.get(target, source[spec.target]))))
        else:
            raise ExportError(f"from_torch: the program takes a {spec.kind}, which is no tensor")
    values: dict[Any, Any] = {node: Ref(n) for n, (node, _) in enumerate(inputs)}
    order = {name: len(inputs) + n for n, name in enumerate(names)}
    values |= {node: Ref(order[path]) for node, path in refs.items()}
    first = len(inputs) + len(names)
    values |= {node: Ref(first + n) for node, n in constant_of.items()}
    builder = Builder(torch, first + len(constants), values)
    outputs = builder.checked(builder.walk(program.graph_module))
    users = [spec for spec in program.graph_signature.output_specs]
    given = [v for v, spec in zip(outputs, users, strict=True) if spec.kind.name == "USER_OUTPUT"]
    nodes, result = _live(builder.nodes, first + len(constants), _numbered(structure, given))
    weights = weights_of(torch, module, names, nodes, len(inputs))
    if unknown := sorted({node.op for node in nodes if node.op not in torch_op}):
        raise NotImplementedError("from_torch: " + missing_operators(nodes, unknown))
    sizes = {str(s): _range(r) for s, r in program.range_constraints.items()}
    used = {s for _, i in inputs for s in i.shape if isinstance(s, str)}
    written = [spec.target for spec in users if spec.kind.name == "BUFFER_MUTATION"]
    name = type(module).__name__
    info: dict[str, Any] = {"torch": str(torch.__version__), "class": name, "mode": "eval", "task": task_named(name)}
    if builder.checks:
        info["decided"] = sorted(set(builder.checks.values()))  # as the example did; a call that would not is an error
    if written:
        info["written"] = written  # what the module would have kept for its next call; a program keeps nothing
    graph = Graph(
        tuple(i for _, i in inputs), weights, tuple(constants), nodes, result,
        sizes={s: r for s, r in sizes.items() if s in used}, aliases=aliases, info=info,
    )  # fmt: skip
    return graph, names


def own_names(module: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of `module.state_dict()`, tied ones once; and the other names of those."""
    state = module.state_dict(keep_vars=True)
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    kept: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(state, key=lambda n: n in tied):
        key = id(state[name])
        if key in kept:
            aliases[name] = kept[key]
        else:
            kept[key] = name
    return {name: tensor for name, tensor in state.items() if name not in aliases}, aliases


def _range(bounds: Any) -> tuple[int, int | None]:
    as_int = lambda v: int(v) if getattr(v, "is_Integer", False) or isinstance(v, int) else None
    upper = as_int(bounds.upper)
    return max(as_int(bounds.lower) or 0, 0), None if upper is None or upper > 1 << 40 else upper


def _shape(tensor: Any) -> tuple[int | str, ...]:
    number = lambda s: s if isinstance(s, int) else int(s.node.expr) if s.node.expr.is_number else str(s)
    return tuple(number(s) for s in tensor.shape)


def _numbered(structure: Any, outputs: list[Any]) -> Any:
    kind, rest = structure
    if kind == "value":
        return kind, outputs[rest] if isinstance(rest, int) else rest if rest is None else rest[0]
    if kind == "tuple":
        return kind, tuple(_numbered(r, outputs) for r in rest)
    return kind, tuple((name, _numbered(r, outputs)) for name, r in rest)


def _live(nodes: list[Node], first: int, result: Any) -> tuple[tuple[Node, ...], Any]:
    """The nodes that the result needs, numbered anew: checks and what only they use are left out."""
    needed = {n for n in refs_in(result)}
    for n in range(len(nodes) - 1, -1, -1):
        if first + n in needed:
            needed |= {r for a in nodes[n].args for r in refs_in(a)} | {
                r for _, v in nodes[n].kwargs for r in refs_in(v)
            }
    kept = [n for n in range(len(nodes)) if first + n in needed]
    number = {first + n: first + i for i, n in enumerate(kept)}

    def new(value: Any) -> Any:
        if isinstance(value, Ref):
            return Ref(number.get(value.number, value.number))
        return tuple(new(v) for v in value) if isinstance(value, tuple) else value

    out = tuple(
        Node(nodes[n].op, new(nodes[n].args), tuple((k, new(v)) for k, v in nodes[n].kwargs), nodes[n].where)
        for n in kept
    )
    return out, new(result)
