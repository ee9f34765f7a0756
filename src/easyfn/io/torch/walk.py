"""A graph of torch written down as nodes of a program."""

from __future__ import annotations

import re
from typing import Any

from .decompose import INLINED
from .graph import DType, Node, Ref
from .roles import dtype_name
from .trace import ExportError
from .values import CHECKS, SCALARS, of_example


class Builder:
    """Walks a graph of torch and writes its nodes down, those of inner graphs in their place."""

    def __init__(self, torch: Any, first: int, values: dict[Any, Any]) -> None:
        self.torch, self.first, self.values = torch, first, values
        self.nodes: list[Node] = []
        self.scalars: dict[
            Any, str
        ] = {}  # numbers that are values of arrays, and what is reckoned from them: where from
        self.fixed: dict[Any, Any] = {}  # those of them that sizes depend on, as they were in the example
        self.checks: dict[Ref, str] = {}  # what must hold for the program to do what the module does: where from

    def walk(self, module: Any) -> Any:
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = getattr(module, node.target)
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                return [self.value(v) for v in node.args[0]]
        return []

    def call(self, node: Any) -> Any:
        name = operator_name(self.torch, node.target)
        if name in INLINED:
            skip = 1 if name.endswith("enabled") else 4
            inner, *passed = [self.value(a) for a in node.args[skip:]]
            places = [n for n in inner.graph.nodes if n.op == "placeholder"]
            self.values.update(zip(places, passed, strict=True))
            outer = zip(places, node.args[skip + 1 :], strict=True)
            self.scalars.update((place, self.scalars[a]) for place, a in outer if a in self.scalars)
            return self.walk(inner)
        if name == "sym.getitem" and isinstance(self.value(node.args[0]), list):
            return self.value(node.args[0])[node.args[1]]
        if name == "aten.as_strided.default":
            return self.strided(node, name)
        if name in SCALARS:
            self.scalars[node] = place_of(node)
        elif name.startswith("sym.") and (origins := [n for n in node.all_input_nodes if n in self.scalars]):
            self.scalars[node] = self.scalars[origins[0]]
        elif name in CHECKS:
            self.checks[self.values[node.args[0]]] = place_of(node)
        elif name == "aten._assert_scalar.default" and node.args[0] in self.scalars:
            self.checks[self.values[node.args[0]]] = self.scalars[node.args[0]]
        fixed = not name.startswith(("sym.", "aten._assert_scalar", "aten.sym_"))
        args = tuple(self.value(a, fixed) for a in node.args)
        kwargs = tuple((k, self.value(v, fixed)) for k, v in node.kwargs.items() if k not in LEFT_OUT)
        if (
            name.startswith("aten.pow.") and node.meta["val"].dtype == self.torch.int64
        ):  # hashes: they grow beyond 32 bits
            where = f"{place_of(node)}, computes with integers of 64 bits: jax.config.update('jax_enable_x64', True)"
            self.checks[self.emit("easyfn.power_fits.default", args, (), place_of(node))] = where
        return self.emit(name, args, kwargs, place_of(node))

    def emit(self, name: str, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...] = (), where: str = "") -> Ref:
        self.nodes.append(Node(name, args, kwargs, where))
        return Ref(self.first + len(self.nodes) - 1)

    def strided(self, node: Any, name: str) -> Ref:
        """A view by steps through memory: the array's axes are put into the order that they have there."""
        source, *rest = node.args
        value, hint = source.meta["val"], lambda s: s if isinstance(s, int) else s.node.hint
        sizes, strides = [hint(s) for s in value.shape], [hint(s) for s in value.stride()]
        order = sorted(range(value.ndim), key=lambda axis: (strides[axis], sizes[axis]), reverse=True)
        step = 1
        for axis in reversed(order):
            if 0 in sizes or (sizes[axis] != 1 and strides[axis] != step):
                raise ExportError(f"from_torch: as_strided of a part of an array, in {place_of(node)}")
            step *= sizes[axis]
        offset = self.value(rest[2] if len(rest) > 2 else node.kwargs.get("storage_offset"))
        if offset and hint(value.storage_offset()):
            raise ExportError(f"from_torch: as_strided of a part of an array, in {place_of(node)}")
        there = self.values[source]
        if order != sorted(order):
            there = self.emit("aten.permute.default", (there, tuple(order)), (), place_of(node))
        return self.emit(name, (there, *(self.value(r, True) for r in rest[:2]), offset), (), place_of(node))

    def number(self, node: Any) -> Any:
        """A number that sizes may depend on, as it was in the example, which is checked."""
        if node not in self.fixed:
            self.fixed[node] = of_example(node.meta["val"])
            where = self.scalars[node]
            self.checks[self.emit("sym.eq", (self.values[node], self.fixed[node]), (), where)] = where
        return self.fixed[node]

    def checked(self, outputs: list[Any]) -> list[Any]:
        """The results of the program, none of which is given if a check fails."""
        refs = [v for v in outputs if isinstance(v, Ref)]
        if not self.checks or not refs:
            return outputs
        held = self.emit("easyfn.checked.default", (tuple(refs), tuple(self.checks), tuple(self.checks.values())))
        found = {ref: self.emit("sym.getitem", (held, n)) for n, ref in enumerate(refs)}
        return [found[v] if isinstance(v, Ref) else v for v in outputs]

    def value(self, value: Any, fixed: bool = False) -> Any:
        """An argument as plain data. `fixed`: numbers that are values of arrays as they were in the example."""
        torch = self.torch
        if isinstance(value, torch.fx.Node):
            whole = not isinstance(value.meta.get("val"), (float, torch.SymFloat))
            return self.number(value) if fixed and whole and value in self.scalars else self.values[value]
        if isinstance(value, (list, tuple)):
            return tuple(self.value(v, fixed) for v in value)
        if isinstance(value, torch.dtype):
            return DType(dtype_name(value))
        if isinstance(value, (torch.device, torch.layout, torch.memory_format)):
            return None
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            return value
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise ExportError(f"from_torch: a size {value} that is no value of the program")
        raise ExportError(f"from_torch: an argument {value!r} that is no plain data")


HERE = __file__.rpartition("/")[0]
LEFT_OUT = ("device", "layout", "memory_format", "pin_memory", "non_blocking")


def operator_name(torch: Any, target: Any) -> str:
    """`aten.add.Tensor`, `sym.mul` for Python's own functions of sizes, `higher_order.cond`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    return f"sym.{getattr(target, '__name__', str(target))}"


def place_of(node: Any) -> str:
    """The part of the module that a node comes from, and the line of its source."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    part = str(stack[-1][0]).removeprefix("module").lstrip(".") if stack else ""
    trace = node.meta.get("stack_trace") or ""
    lines = re.findall(r'File "([^"<]+)", line (\d+), in (\w+)', trace)
    lines = [line for line in lines if not line[0].startswith(HERE)]
    line = ""
    if lines:
        file, number, function = lines[-1]
        line = f"{'/'.join(file.split('/')[-2:])}:{number} ({function})"
    return f"{part or 'the module'}, {line}" if line else part
