"""`show`: a model as a table of its weights; and how much of everything there is."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ..core.slots import find_slots
from ..core.trainable import trainable
from ..core.tree import children, is_leaf, join, leaves, nodes
from ..core.verb import verb
from ..core.weight import format_of, shape_of, slots
from ..tasks.task import task
from .facts import model_type
from .notebook import fold, line, page, stacked
from .terminal import table


@verb
def describe(w: Any) -> str:
    """The name of what is in a weight slot, for a table: `float32`, `nf4/64`, `LoRA on int8`.

    By default the dtype of an array, what `format_of` says of a format, and the class of whatever wraps a weight.
    """
    if is_leaf(w):
        return str(getattr(w, "dtype", type(w).__name__))
    name = format_of(w)
    if name is not None:
        return name
    base = getattr(w, "base", None)
    return type(w).__name__ if base is None else f"{type(w).__name__} on {describe(base)}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of a model, or equal weights of several layers: `paths` are all of theirs."""

    path: str  # as printed: `model.layers.0-31.self_attn.q_proj.weight`
    paths: tuple[str, ...]
    shape: tuple[int, ...]  # of the dense weight, of one of them
    format: str
    axes: tuple[str | None, ...] | None  # logical names
    placement: str
    trainable: int  # arrays' entries that a training step changes, of all of them
    params: int  # of the dense weights, of all of them
    bytes: int


@dataclasses.dataclass(frozen=True)
class Table:
    """What [`easyfn.show`][] returns: `print` it, or let a notebook draw it. `rows` are data."""

    title: str
    rows: tuple[Row, ...]

    def totals(self) -> dict[str, tuple[int, int]]:
        """Parameters and bytes by format."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.rows:
            params, size = found.get(row.format, (0, 0))
            found[row.format] = (params + row.params, size + row.bytes)
        return found

    def __str__(self) -> str:
        head = _HEAD
        cells = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        right = (len(head) - 1,)

        def line(values: tuple[str, ...]) -> str:
            parts = (
                v.rjust(w) if i in right else v.ljust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True))
            )
            return "  ".join(parts).rstrip()

        return "\n".join([self.title, "", *(line(c) for c in cells), "", *self._summary()])

    __repr__ = __str__

    def __rich__(self) -> Any:
        return table(self.title, _HEAD, [_cells(row) for row in self.rows], self._summary())

    def _repr_html_(self) -> str:
        whole = max(sum(row.bytes for row in self.rows), 1)
        kinds = sorted(self.totals().items(), key=lambda item: -item[1][1])
        memory = [(name, f"{amount(params)} parameters, {size_of(size)}", size) for name, (params, size) in kinds]
        head = line((*_HEAD, ""), _COLUMNS, kind="easyfn-head")
        tree = _branches([(tuple(row.path.split(".")), row) for row in self.rows], whole, len(self.rows) <= _MANY)
        return page(self.title, [stacked(memory, whole), head, *tree])

    def _summary(self) -> list[str]:
        totals = sorted(self.totals().items(), key=lambda item: -item[1][1])
        width = max((len(name) for name, _ in totals), default=0)
        lines = [f"{name.ljust(width)}  {amount(p)} parameters, {size_of(b)}" for name, (p, b) in totals]
        return lines if len(lines) < 2 else [*lines, f"{'total'.ljust(width)}  {self.title.rsplit(': ', 1)[-1]}"]


_HEAD = ("path", "shape", "format", "axes", "placement", "trains", "bytes")
_COLUMNS = (
    "minmax(260px,1.6fr) minmax(90px,.7fr) minmax(90px,.8fr) minmax(90px,.9fr) minmax(70px,.6fr) 60px 110px 110px"
)
_MANY = 40  # lines that a notebook shows unfolded


def _branches(rows: list[tuple[tuple[str, ...], Row]], whole: int, unfolded: bool, depth: int = 0) -> Iterator[str]:
    """Rows, by what is left of their paths, as lines that fold where several have a beginning in common."""
    groups: dict[str, list[tuple[tuple[str, ...], Row]]] = {}
    for (name, *rest), row in rows:
        groups.setdefault(name, []).append((tuple(rest), row))
    for name, group in groups.items():
        while all(rest for rest, _ in group) and len({rest[0] for rest, _ in group}) == 1:  # an only child: one line
            name = f"{name}.{group[0][0][0]}"
            group = [(rest[1:], row) for rest, row in group]
        for _, row in (each for each in group if not each[0]):
            cells = (name, *_cells(row)[1:])
            yield line(cells, _COLUMNS, share=row.bytes / whole, depth=depth)
        if under := [each for each in group if each[0]]:
            params, size = (sum(getattr(row, of) for _, row in under) for of in ("params", "bytes"))
            cells = (name, "", f"{amount(params)} parameters", "", "", "", size_of(size))
            said = line(cells, _COLUMNS, share=size / whole, depth=depth, kind="easyfn-branch")
            yield fold(said, _branches(under, whole, unfolded, depth + 1), unfolded=unfolded or depth == 0)


def _cells(row: Row) -> tuple[str, ...]:
    many = len(row.paths)
    shape = " x ".join(map(str, row.shape)) or "scalar"
    axes = "" if not row.axes else ", ".join(name or "-" for name in row.axes)
    trains = "no" if not row.trainable else "yes" if row.trainable == row.params else amount(row.trainable)
    times = f"{many} x " if many > 1 else ""
    return (row.path, shape, row.format, axes, row.placement, trains, times + size_of(row.bytes // many))


def show(model: Any) -> Table:
    """The weights of a model: path, shape, format, logical axes, placement, what trains, bytes; and totals by format.

    Equal weights of many layers are one line, with the layers' numbers in the path. Works on abstract, stacked,
    quantized and adapted models, and on any pytree. `print(ef.show(model))`; in a notebook it is an HTML table,
    and `rich.print` has colours.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert "model.layers.0-1.self_attn.q_proj.weight" in str(ef.show(model))
    ```
    """
    rows = _fold(list(_rows(model)))
    kind = task(model)
    of = f"{model_type(model)}, {kind}"
    total, trains, size = num_params(model), num_params(model, trainable_only=True), num_bytes(model)
    some = "" if trains == total else f" ({amount(trains)} train)"
    return Table(f"{of}: {amount(total)} parameters{some}, {size_of(size)}", tuple(rows))


def _rows(model: Any) -> Iterator[Row]:
    changes = _changing(model)
    axes: dict[str, tuple[str | None, ...]] = {}
    for path, node in weights(model):
        if not is_leaf(node) and not _whole(node):
            axes |= {join(path, name): slot.axes for name, slot in slots(node).items()}
            continue
        parts = {join(path, name): leaf for name, leaf in leaves(node).items()}
        shape = tuple(shape_of(node))
        yield Row(
            path,
            (path,),
            shape,
            describe(node),
            axes.get(path),
            placement(max(parts.values(), key=lambda leaf: leaf.size)) if parts else "",
            sum(leaf.size for name, leaf in parts.items() if name in changes),
            math.prod(shape),
            sum(_bytes(leaf) for leaf in parts.values()),
        )


def weights(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node down to whole weights: an array or a weight format is not looked into."""
    if is_leaf(model):
        if hasattr(model, "shape"):
            yield path, model
        return
    yield path, model
    if not _whole(model):
        for name, child in children(model)[0]:
            yield from weights(child, join(path, name))


def _whole(node: Any) -> bool:
    """Whether a node is a weight in some format; an adapter that was taken off its weight is its own arrays."""
    return shape_of.knows(type(node)) and getattr(node, "base", node) is not None


_number = re.compile(r"(?<![^.])\d+(?![^.])")


def _fold(rows: list[Row]) -> list[Row]:
    """Rows that differ in the numbers of their path only become one."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((_number.sub("*", row.path), row.shape, row.format, row.axes, row.placement), []).append(row)
    folded = []
    for (pattern, *_), members in groups.items():
        numbers = zip(*(map(int, _number.findall(row.path)) for row in members), strict=True)
        spans = iter([_span(sorted(set(column))) for column in numbers])
        path = "".join(next(spans) if piece == "*" else piece for piece in re.split(r"(\*)", pattern))
        paths = tuple(row.path for row in members)
        trains, params, size = (sum(getattr(row, f) for row in members) for f in ("trainable", "params", "bytes"))
        folded.append(
            dataclasses.replace(members[0], path=path, paths=paths, trainable=trains, params=params, bytes=size)
        )
    return folded


def _span(numbers: list[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2,5`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def placement(leaf: Any) -> str:
    """Where an array is: its partition over a mesh, its device, or `abstract`."""
    if isinstance(leaf, jax.core.Tracer):
        return "traced"
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        spec = ", ".join("-" if s is None else "+".join(s) if isinstance(s, tuple) else str(s) for s in sharding.spec)
        return f"[{spec}]" if any(s is not None for s in sharding.spec) else "replicated"
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "abstract"
    if isinstance(leaf, jax.Array):
        devices = sorted(str(d).lower() for d in leaf.devices())
        return devices[0] if len(devices) == 1 else f"{len(devices)} devices"
    return "host"


def _changing(model: Any) -> set[str]:
    """The arrays that a training step changes; none where `trainable` refuses a model, which can be shown as any."""
    try:
        return {path for path, flag in nodes(trainable(model)) if flag is True}
    except ValueError:
        return set()


def num_params(model: Any, *, trainable_only: bool = False) -> int:
    """The entries of the dense weights that a model stands for: `quantize` changes nothing, a tied head counts once.

    Adapters are not counted, since they merge into their weights; nor are buffers, as in torch. `trainable_only` counts
    instead the entries of the arrays that a training step changes (so with a LoRA: the adapters).

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.num_params(ef.quantize(model, "8bit")) == ef.num_params(model) > 0
    ```
    """
    if trainable_only:
        chosen = _changing(model)
        return sum(leaf.size for path, leaf in leaves(model).items() if path in chosen)
    buffers = {found.path for found in find_slots(model, ("buffer",))}
    counted = (node for path, node in weights(model) if path not in buffers)
    return sum(math.prod(shape_of(node)) for node in counted if is_leaf(node) or _whole(node))


def num_bytes(model: Any) -> int:
    """The bytes of all arrays of a model, codes, scales and adapters included; abstract ones as if they were there.

    ```python
    import easyfn as ef
    model = ef.testing.tiny()
    assert ef.num_bytes(ef.half(model)) == ef.num_bytes(model) // 2
    ```
    """
    return sum(_bytes(leaf) for leaf in leaves(model).values())


def _bytes(leaf: Any) -> int:
    dtype = jnp.dtype(leaf.dtype) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.dtype("uint32")
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else dtype.itemsize * 8
    return -(-leaf.size * bits // 8)


def amount(n: int) -> str:
    """`1.24 M` for 1240000."""
    for factor, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if n >= factor:
            return f"{n / factor:.3g}{unit}" if n < 1000 * factor else f"{n / factor:.0f}{unit}"
    return str(int(n))


def size_of(n: int) -> str:
    """`1.24 GB` for 1240000000 bytes."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= factor:
            return f"{n / factor:.2f} {unit}"
    return f"{int(n)} B"
