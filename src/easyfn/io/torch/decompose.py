"""An exported graph in operators that easyfn knows and that write into none of their arguments.

`torch.export` gives the operators that the module calls. Mostly they are known as they are, and the graph is used so; taking
everything apart into core ATen traces the module a second time, which takes longer than the export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .ops import torch_op

INLINED = ("higher_order.wrap_with_set_grad_enabled", "higher_order.wrap_with_autocast")


def is_plain(torch: Any, module: Any, name_of: Callable[..., str]) -> bool:
    """Whether a graph can be used as it is. Operators in place become their twins that give a new array, where nobody else
    sees the old one."""
    for graph in graphs_of(module):
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable and not _write_nothing(torch, graph, node, name_of):
                return False
            name = name_of(torch, node.target)
            if node.users and name not in torch_op and name not in INLINED:
                return False
    for part in module.modules():
        if getattr(part, "graph", None) is not None:
            part.recompile()
    return True


def drop_dropout(torch: Any, module: Any) -> None:
    """Dropout in eval mode is the array itself, also for what is written into it afterwards; decomposing makes a copy of it."""
    kinds = [
        torch.ops.aten.dropout.default,
        torch.ops.aten.feature_dropout.default,
        torch.ops.aten.alpha_dropout.default,
    ]
    for graph in graphs_of(module):
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in kinds and (node.args[1] == 0 or not node.args[2]):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def graphs_of(module: Any) -> Iterator[Any]:
    for part in module.modules():
        if (graph := getattr(part, "graph", None)) is not None:
            yield graph


def _write_nothing(torch: Any, graph: Any, node: Any, name_of: Callable[..., str]) -> bool:
    """`x.add_(y)` as `x = x + y`: later users of the array take the new one. `False` if that cannot be said of it."""
    twin = _twin(torch, node.target)
    target = node.args[0] if node.args else None
    if twin is None or name_of(torch, twin) not in torch_op or not isinstance(target, torch.fx.Node):
        return False
    if not _is_new(torch, target) or any(_may_alias(torch, user) for user in _before(graph, target, node)):
        return False
    have, dtype = node.meta.get("val"), target.meta["val"].dtype
    node.target = twin
    new = node
    if have is not None and any(_dtype(a) not in (None, dtype) for a in node.args[1:]):
        with graph.inserting_after(node):
            new = graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    after = False
    for other in list(graph.nodes):
        if after and target in other.all_input_nodes:
            other.replace_input_with(target, new)
        after = after or other is new
    return True


def _before(graph: Any, value: Any, node: Any) -> Iterator[Any]:
    """The users of a value in front of `node`: what is a view of it afterwards is a view of what was written."""
    for other in graph.nodes:
        if other is node:
            return
        if other in value.users:
            yield other


def _twin(torch: Any, target: Any) -> Any:
    """`aten.add.Tensor` of `aten.add_.Tensor`; `None` where the first argument is not the only one that is written."""
    name, arguments = target._schema.name, target._schema.arguments
    written = [n for n, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    if not name.startswith("aten::") or not name.endswith("_") or written != [0]:
        return None
    packet = getattr(torch.ops.aten, name.removeprefix("aten::")[:-1], None)
    return getattr(packet, target._overloadname or "default", None)


# Operators made of others whose result is always an array of its own; of the rest of that kind some give an argument back
# without saying so (`dropout` in eval mode, `type_as`).
NEW = frozenset(
    """linear matmul conv1d conv2d conv3d layer_norm group_norm batch_norm softmax log_softmax one_hot
    scaled_dot_product_attention""".split()  # noqa: SIM905
)


def _is_new(torch: Any, node: Any) -> bool:
    """Whether a value is an array of its own, of which no argument of its operator is another view."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    if schema is None or len(schema.returns) != 1 or schema.returns[0].alias_info is not None:
        return False
    return not _hides_views(torch, node.target)


def _hides_views(torch: Any, target: Any) -> bool:
    made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return bool(made_of_others) and target._schema.name.removeprefix("aten::") not in NEW


def _may_alias(torch: Any, user: Any) -> bool:
    """Whether a result of `user` may be another view of one of its arguments."""
    if user.op == "output":
        return False
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return True
    if schema.is_mutable:  # its turn comes, or has been
        return False
    return any(r.alias_info is not None for r in schema.returns) or _hides_views(torch, user.target)


def _dtype(value: Any) -> Any:
    """The dtype of a tensor argument; numbers of Python count as another where they may widen it."""
    meta = getattr(value, "meta", None)
    if meta is not None:
        return getattr(meta.get("val"), "dtype", None)
    return "a number" if isinstance(value, (float, complex)) else None
