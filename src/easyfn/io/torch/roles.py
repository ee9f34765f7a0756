"""What each weight of an exported module is for, by its use; and what the module is for, by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...core.weight import Slot
from ...tasks.task import tasks
from .graph import Node, Ref, WeightOf


def dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def refs_in(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.number
    elif isinstance(value, tuple):
        for v in value:
            yield from refs_in(v)


_NORMS = ("norm",)


def weights_of(
    torch: Any, module: Any, names: Mapping[str, Any], nodes: tuple[Node, ...], first: int
) -> tuple[WeightOf, ...]:
    """Roles by use: the second argument of `linear` is a linear weight wherever it came from."""
    uses: dict[int, set[tuple[str, int]]] = {}
    for node in nodes:
        for n, arg in enumerate(node.args):
            for ref in refs_in(arg):
                uses.setdefault(ref, set()).add((node.op, n if isinstance(arg, Ref) else -1))
        for _, value in node.kwargs:
            for ref in refs_in(value):
                uses.setdefault(ref, set()).add((node.op, -1))
    head = _output_weight(module)
    parameters = {id(p) for p in module.parameters()}
    out = []
    for n, (name, tensor) in enumerate(names.items()):
        shape = tuple(tensor.shape)
        role, turned = _role(uses.get(first + n, set()), shape)
        if id(tensor) not in parameters:
            role, turned = "buffer", False
        elif role == "linear" and tensor is head:
            role = "head"
        elif role == "":
            role = _role_of_unused(torch, module, name)
        out.append(WeightOf(name, dtype_name(tensor.dtype), shape, role, turned))
    return tuple(out)


def _role(uses: set[tuple[str, int]], shape: tuple[int, ...]) -> tuple[str, bool]:
    ops = {op.split(".")[1] if op.count(".") else op: n for op, n in uses}
    at = lambda op, n: all(place == n for name, place in uses if name.split(".")[1] == op)
    if not uses:
        return "", False
    if len(shape) == 2 and set(ops) <= {"linear", "embedding"} and at("linear", 1) and at("embedding", 0):
        return ("embedding" if "embedding" in ops else "linear"), False
    if len(shape) == 2 and set(ops) <= {"mm", "addmm", "matmul"} and at("mm", 1) and at("matmul", 1) and at("addmm", 2):
        return "linear", True
    if len(shape) == 3 and set(ops) == {"grouped_linear"} and at("grouped_linear", 1):
        return "experts", False
    if all(name.startswith("conv") for name in ops) and all(place == 1 for _, place in uses):
        return "conv", False
    if len(shape) == 1 and (set(ops) <= {"linear", "addmm"} or all(name.startswith("conv") for name in ops)):
        return "bias", False
    if any(word in name for name in ops for word in _NORMS):
        return "norm", False
    return "other", False


def _role_of_unused(torch: Any, module: Any, name: str) -> str:
    owner = module.get_submodule(name.rpartition(".")[0])
    last = name.rpartition(".")[2]
    if isinstance(owner, torch.nn.Linear):
        return "linear" if last == "weight" else "bias"
    return "embedding" if isinstance(owner, torch.nn.Embedding) else "other"


def _output_weight(module: Any) -> Any:
    try:
        return getattr(module.get_output_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):
        return None


def task_named(name: str) -> str:
    """The task that the name of a transformers class ends in."""
    return next((task for task, each in tasks().items() if name.endswith(each.classes)), "base")


def slot_of(weight: WeightOf) -> Slot:
    """What verbs need to know of a weight. The wide axis of a linear weight is the one that tensor parallelism splits."""
    shape = weight.shape[::-1] if weight.turned else weight.shape
    if weight.role in ("embedding", "head"):
        return Slot(weight.role, ("vocab", "embed"))
    if weight.role == "linear":
        return Slot("linear", ("mlp", "embed") if shape[0] >= shape[1] else ("embed", "mlp"))
    if weight.role == "experts":
        return Slot("experts", ("experts", *(("mlp", "embed") if shape[1] >= shape[2] else ("embed", "mlp"))))
    if weight.role == "norm":
        return Slot("norm", (None,) * len(shape), "zeros" if weight.path.endswith("bias") else "ones")
    return Slot(weight.role, (None,) * len(shape), "zeros" if weight.role == "bias" else "normal")
