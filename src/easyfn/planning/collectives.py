"""What a compiled program sends between devices: read from its text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """Collectives of one kind over the same axes of a mesh.

    `bytes` is what one device holds of the whole that is moved, over all turns of all loops: the gathered array of an
    `all-gather`, the summed one of an `all-reduce`, the array before a `reduce-scatter`, what enters an `all-to-all`
    or a `collective-permute`. `number` is how many there are, `group` the ids of the devices of one of them.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    number: int
    group: tuple[int, ...]


class _Instruction(NamedTuple):
    name: str
    result: str  # its type
    op: str
    inside: str  # what is in the parentheses
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.inside)


_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


def read_collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a compiled program, its optimized HLO as `compiled.as_text()` gives it, largest first.

    `mesh` maps the names of the axes to their sizes, outermost first: device `i` lies at its digits. Loops count as often
    as XLA knows them to run (once, if it does not know). An all-reduce of which every device only keeps its slice is a
    `reduce-scatter`: XLA's passes for GPU and TPU make it one, those for CPU do not. An all-reduce that XLA:CPU promoted
    from 16 bits to 32 counts with 16.

    ```python
    import jax, jax.numpy as jnp, easyfn as ef
    mesh = ef.make_mesh(fsdp=-1)
    x = jax.ShapeDtypeStruct((len(jax.devices()), 4), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("fsdp")))
    text = jax.jit(lambda x: jnp.sum(x)).lower(x).compile().as_text()
    assert all(c.axes == ("fsdp",) for c in ef.planning.read_collectives(text, mesh.shape))
    ```
    """
    computations, entry = _computations(text)
    found: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for name, turns in _turns(computations, entry).items():
        for one in _of_computation(computations, name, mesh):
            found.setdefault((one.kind, one.axes), []).append(
                one._replace(bytes=one.bytes * turns, number=one.number * turns)
            )
    merged = [
        Collective(kind, axes, sum(c.bytes for c in some), sum(c.number for c in some), some[0].group)
        for (kind, axes), some in found.items()
    ]
    return sorted(merged, key=lambda c: -c.bytes)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif current is not None and (m := _LINE.match(line)):
            current.append(_Instruction(m[1], m[2], m[3].removesuffix("-start"), m[4], m[5]))
    return computations, entry


def _turns(computations: Mapping[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in one call of the program."""
    turns: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        turns[name] = turns.get(name, 0) + times
        for i in computations.get(name, ()):
            if i.op == "while":
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', i.rest)
                body = re.search(r"body=%?([\w.\-]+)", i.rest)
                if body:
                    visit(body[1], times * (int(known[1]) if known else 1))
            elif i.op in ("call", "async"):
                for callee in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", i.rest):
                    visit(callee, times)
            elif i.op == "conditional":
                branches = re.findall(r"(?:branch|true|false)\w*=(?:\{[^}]*\}|\S+)", i.rest)
                for branch in re.findall(r"%([\w.\-]+)", " ".join(branches)):
                    visit(branch, times)

    visit(entry, 1)
    return turns


def _users(instructions: list[_Instruction]) -> dict[str, list[_Instruction]]:
    users: dict[str, list[_Instruction]] = {}
    for i in instructions:
        for operand in i.operands:
            users.setdefault(operand, []).append(i)
    return users


def _of_computation(
    computations: Mapping[str, list[_Instruction]], name: str, mesh: Mapping[str, int]
) -> Iterator[Collective]:
    instructions = computations[name]
    types = {i.name: i.result for i in instructions}
    users = _users(instructions)
    for i in instructions:
        if i.op not in KINDS:
            continue
        axes, group = _place(i.rest, mesh)
        if not axes:
            continue
        half = 2 if "_promoted" in i.rest else 1
        if i.op == "all-reduce":
            sizes = _arrays(i.result)
            sliced = [_only_sliced(computations, users, i, n) for n in range(len(sizes))]
            for kind, kept in (("reduce-scatter", True), ("all-reduce", False)):
                if some := [size for size, s in zip(sizes, sliced, strict=True) if s == kept]:
                    yield Collective(kind, axes, sum(some) // half, 1, group)
        elif i.op == "all-gather":
            yield Collective(i.op, axes, sum(_arrays(i.result)), 1, group)
        else:
            yield Collective(i.op, axes, sum(s for o in i.operands for s in _arrays(types[o])) // half, 1, group)


def _arrays(result: str) -> list[int]:
    """The bytes of every array of a type: `f32[2,3]{1,0}`, or a tuple of such."""
    sizes = []
    for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result):
        digits = re.search(r"\d+", kind)
        bits = 8 if kind == "pred" or not digits else int(digits[0])
        sizes.append(math.prod(int(n) for n in shape.split(",") if n) * bits // 8)
    return sizes


def _only_sliced(
    computations: Mapping[str, list[_Instruction]], users: Mapping[str, list[_Instruction]], i: _Instruction, index: int
) -> bool:
    """Whether nothing reads more of one result of an all-reduce than a slice."""
    if not i.result.startswith("("):
        return _sliced(computations, users, i.name)
    parts = [u for u in users.get(i.name, ()) if re.search(rf"index={index}\b", u.rest)]
    return bool(parts) and all(_sliced(computations, users, part.name) for part in parts)


def _sliced(computations: Mapping[str, list[_Instruction]], users: Mapping[str, list[_Instruction]], name: str) -> bool:
    readers = users.get(name, [])
    return bool(readers) and all(_slices(computations, users, reader, name) for reader in readers)


def _slices(
    computations: Mapping[str, list[_Instruction]],
    users: Mapping[str, list[_Instruction]],
    reader: _Instruction,
    name: str,
) -> bool:
    if reader.op == "dynamic-slice":
        return True
    if reader.op in ("bitcast", "copy", "convert", "reshape", "transpose"):
        return _sliced(computations, users, reader.name)
    called = re.search(r"calls=%?([\w.\-]+)", reader.rest)
    if reader.op != "fusion" or called is None or called[1] not in computations:
        return False
    inner, number = computations[called[1]], str(reader.operands.index(name))
    parameter = next(i.name for i in inner if i.op == "parameter" and i.inside == number)
    return _sliced(computations, _users(inner), parameter)


_IOTA = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"


def _place(rest: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The axes of the mesh along which the devices of a collective differ, and the ids of one group of them.

    XLA writes groups as lists, as a reshaped and transposed range, or by the axes of a mesh of its own.
    """
    count = math.prod(mesh.values())
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    if pairs:
        groups = [_numbers(p) for p in re.findall(r"\d+,\d+", pairs[1])]
    elif m := re.search(r"replica_groups=" + _IOTA, rest):
        groups = np.reshape(_iota(m[2], m[3]), _numbers(m[1])).tolist()
    elif m := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\)\))? \{(.*?)\}", rest):
        groups = _of_mesh(m[1], m[2], m[3])
    elif m := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        groups = [_numbers(g) for g in re.findall(r"\{([\d,]+)\}", m[1])]
    else:
        groups = [list(range(count))]
    sizes = list(mesh.values())
    differ: set[str] = set()
    for group in groups:
        digits = np.stack(np.unravel_index(group, sizes))
        differ |= {name for name, row in zip(mesh, digits, strict=True) if len(set(row.tolist())) > 1}
    return tuple(name for name in mesh if name in differ), tuple(groups[0])


def _of_mesh(axes: str, order: str | None, along: str) -> list[list[int]]:
    """`'axis_0'=8,'axis_1'=2`, how its devices are ordered, and the axes (or parts of axes, `'axis_0':(2)4`) of a group."""
    names = dict(re.findall(r"'([^']+)'=(\d+)", axes))
    sizes = [int(n) for n in names.values()]
    ids = np.arange(math.prod(sizes))
    if order and (m := re.match(r"\[([\d,]+)\]T\(([\d,]+)", order)):
        ids = _iota(m[1], m[2])
    elif order and re.fullmatch(r"[\d,]+", order):
        ids = np.array(_numbers(order))
    wanted = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)}
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in zip(names, sizes, strict=True):
        before, part = wanted.get(name, ("", ""))
        pieces = [size] if not part else [int(before), int(part), size // int(before) // int(part)]
        if name in wanted:
            grouped.append(len(shape) + (1 if part else 0))
        shape += pieces
    ids = ids.reshape(shape)
    others = [n for n in range(len(shape)) if n not in grouped]
    width = math.prod(shape[n] for n in grouped)
    return ids.transpose(others + grouped).reshape(-1, width).tolist()


def _iota(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
