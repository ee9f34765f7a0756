"""Arithmetic of sizes and other numbers of Python: what dynamic shapes are computed with."""

from __future__ import annotations

import math
import operator
from typing import Any

from .table import torch_op

op = torch_op.register

op("sym.getitem")(operator.getitem)
for _name in (
    "add",
    "sub",
    "mul",
    "floordiv",
    "truediv",
    "mod",
    "neg",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "and_",
    "or_",
):
    op(f"sym.{_name}")(getattr(operator, _name))
op("sym.pow")(operator.pow)
op("sym.sym_not", "sym.not_")(operator.not_)
op("sym.sym_max", "sym.max")(max)
op("sym.sym_min", "sym.min")(min)
op("sym.sym_float")(float)
op("sym.sym_int", "sym.trunc")(int)
op("sym.ceil")(math.ceil)
op("sym.floor")(math.floor)
op("sym.round")(round)
op("sym.sqrt", "sym._sym_sqrt")(math.sqrt)
op("sym.abs")(abs)


@op("sym.sym_ite")
def ite(condition: bool, yes: Any, no: Any) -> Any:
    return yes if condition else no


@op("sym.sym_sum")
def total(terms: Any) -> Any:
    return sum(terms)


@op("aten.sym_size.int")
def size(x: Any, dim: int) -> int:
    return x.shape[dim]


@op("aten.sym_numel.default")
def numel(x: Any) -> int:
    return x.size


@op("aten._local_scalar_dense.default", "aten.item.default")
def item(x: Any) -> Any:
    raise TypeError(
        "the module takes a number out of an array (.item()) and decides by it: a compiled program cannot. Rewrite it with "
        "torch.where, or pass the number as an argument that is no tensor"
    )


@op(
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten._assert_tensor_metadata.default",
    "aten.sym_constrain_range_for_size.default",
    "aten.sym_constrain_range.default",
)
def nothing(*_: Any, **__: Any) -> None:
    """Checks of the export, which hold by the shapes that a program accepts."""
