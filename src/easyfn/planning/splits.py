"""How the values of a traced program are split over a mesh, and which of them are arrays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Spec = tuple[tuple[str, ...], ...]  # for every dimension the axes of the mesh that split it

ALIAS = {"reshape", "squeeze", "expand_dims", "sharding_constraint", "optimization_barrier", "stop_gradient", "copy"}
ALIAS |= {"copy_p", "mesh_cast", "name"}
HEAVY = {
    "dot_general", "ragged_dot_general", "conv_general_dilated", "gather", "scatter", "scatter-add", "sort", "top_k",
    "cumsum", "cummax", "cumlogsumexp", "concatenate", "dynamic_update_slice", "scan", "while", "cond", "custom_call",
    "shard_map", "random_bits", "reduce_window",
}  # fmt: skip


class Value:
    """One array of the program."""

    __slots__ = ("full", "itemsize", "made", "mode", "ops", "shape", "spec")

    def __init__(self, aval: Any, spec: Spec, mode: str, ops: Sequence[Value] = (), made: str = "") -> None:
        self.shape = tuple(getattr(aval, "shape", ()))
        kind = getattr(aval, "dtype", jnp.float32)
        key = jax.dtypes.issubdtype(kind, jax.dtypes.prng_key)
        self.itemsize = 8 if key else jnp.dtype(kind).itemsize
        self.spec = once(spec) if len(spec) == len(self.shape) else ((),) * len(self.shape)
        self.mode = mode  # input, alias, fused, real
        self.ops = [op for op in ops if op is not None]
        self.made = made
        self.full = False  # held whole, see `Region.product`

    def sources(self) -> list[Value]:
        """The arrays in memory that reading this one reads."""
        if self.mode in ("input", "real"):
            return [self]
        found: dict[int, Value] = {}
        stack, seen = [self], {id(self)}
        while stack:
            for op in stack.pop().ops:
                if id(op) in seen:
                    continue
                seen.add(id(op))
                if op.mode in ("input", "real"):
                    found[id(op)] = op
                else:
                    stack.append(op)
        return list(found.values())


def once(spec: Spec) -> Spec:
    """No axis splits two dimensions: the first has it."""
    taken: set[str] = set()
    new = []
    for axes in spec:
        new.append(tuple(a for a in axes if a not in taken))
        taken |= set(axes)
    return tuple(new)


def both(a: Spec | None, b: Spec | None) -> Spec | None:
    if a is None or b is None or len(a) != len(b):
        return a if b is None else b
    return once(tuple(x or y for x, y in zip(a, b, strict=True)))


def kept(value: Value) -> Value:
    """A fused value that a product or a loop reads is written to memory, unless it only widens what is there."""
    if value.mode == "fused":
        plain = value.made in ("convert_element_type", "broadcast_in_dim", "iota")
        if not plain or any(op.mode == "fused" for op in value.ops):
            value.mode = "real"
    elif value.mode == "alias" and value.ops:
        kept(value.ops[0])
    return value


def is_weight(value: Value) -> bool:
    return value.made == "weight" or (
        value.mode in ("alias", "fused") and bool(value.ops) and all(is_weight(op) for op in value.ops)
    )


def spec_after(e: Any, out: Any, ins: Sequence[Value | None]) -> Spec:
    """How the result of an operation without a rule of its own is split."""
    name, p = e.primitive.name, e.params
    shape = tuple(getattr(out, "shape", ()))
    first = next((v for v in ins if v is not None and v.shape), None)
    if first is None:
        return ((),) * len(shape)
    if name == "transpose":
        return tuple(first.spec[i] for i in p["permutation"])
    if name == "broadcast_in_dim":
        spec: list[tuple[str, ...]] = [()] * len(shape)
        for i, d in enumerate(p["broadcast_dimensions"]):
            spec[d] = first.spec[i] if first.shape[i] == shape[d] else ()
        return tuple(spec)
    if name == "squeeze":
        return tuple(axes for i, axes in enumerate(first.spec) if i not in p["dimensions"])
    if name.startswith(("reduce_", "arg")) and "axes" in p:
        return tuple(axes for i, axes in enumerate(first.spec) if i not in p["axes"])
    if name == "reshape":
        return reshaped(first.shape, first.spec, shape)
    if name == "sharding_constraint":
        said = getattr(p["sharding"], "spec", ())
        wanted = [
            () if s is None else (s,) if isinstance(s, str) else tuple(s) if isinstance(s, tuple) else () for s in said
        ]
        return tuple((wanted[i] if i < len(wanted) and wanted[i] else first.spec[i]) for i in range(len(shape)))
    found: list[tuple[str, ...]] = [()] * len(shape)
    for value in ins:
        if value is not None and len(value.shape) == len(shape):
            for i, axes in enumerate(value.spec):
                if axes and not found[i] and value.shape[i] == shape[i]:
                    found[i] = axes
    return tuple(found)


def reshaped(shape: tuple[int, ...], spec: Spec, new: tuple[int, ...]) -> Spec:
    """Dimensions that are merged bring their axes along; of one that is cut the outermost part keeps them."""
    result: list[tuple[str, ...]] = [()] * len(new)
    i = j = 0
    while i < len(shape) and j < len(new):
        a, b, k, m = shape[i], new[j], i + 1, j + 1
        while a != b:
            if a < b and k < len(shape):
                a, k = a * shape[k], k + 1
            elif m < len(new):
                b, m = b * new[m], m + 1
            else:
                return tuple(result)
        axes = tuple(x for d in range(i, k) for x in spec[d])
        target = next((d for d in range(j, m) if new[d] > 1), j)
        result[target] = axes
        i, j = k, m
    return tuple(result)
