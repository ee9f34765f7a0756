"""Arithmetic of sizes and other numbers of Python: what dynamic shapes are computed with."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .table import default_of, torch_op

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
op("sym.abs")(abs)


def either(python: Callable[..., Any], array: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers, or of arrays without axes if one is among them: a number that is a value of an array."""
    return lambda *args: (array if any(isinstance(a, jax.Array) for a in args) else python)(*args)


whole = lambda rounded: lambda x: rounded(x).astype(default_of(1))
op("sym.sym_not", "sym.not_")(either(operator.not_, jnp.logical_not))
op("sym.sym_max", "sym.max")(either(max, jnp.maximum))
op("sym.sym_min", "sym.min")(either(min, jnp.minimum))
op("sym.sym_float")(either(float, lambda x: x.astype(default_of(2))))
op("sym.sym_int", "sym.trunc")(either(int, whole(jnp.trunc)))
op("sym.ceil")(either(math.ceil, whole(jnp.ceil)))
op("sym.floor")(either(math.floor, whole(jnp.floor)))
op("sym.round")(either(round, whole(jnp.round)))
op("sym.sqrt", "sym._sym_sqrt")(either(math.sqrt, jnp.sqrt))
op("sym.sym_ite")(either(lambda condition, yes, no: yes if condition else no, jnp.where))


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
    return lax.stop_gradient(x).reshape(())


@op(
    "aten._assert_scalar.default",
    "aten._assert_async.msg",
    "aten._assert_tensor_metadata.default",
    "aten.sym_constrain_range_for_size.default",
    "aten.sym_constrain_range.default",
)
def nothing(*_: Any, **__: Any) -> None:
    """Checks of the export, which hold by the shapes that a program accepts."""
