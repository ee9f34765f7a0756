"""Every array of a model as the tensors of a file, layer by layer, each brought to the host as late as possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.multihost import local
from ..core.slots import dtype_in, find_slots
from ..core.trainable import is_adapter
from ..core.tree import expand, is_leaf, nodes
from ..core.weight import shape_of
from ..names.rules import Rule, Tensors, tensors_for
from ..registry.family import family_of
from .dtypes import float_dtype
from .fill import units
from .formats import DiskFormat, writer_for
from .writing import Entry


def entries(model: Any, dtype: Any = None) -> list[Entry]:
    """Every tensor of the file, in the order of the model; nothing is read yet."""
    dtype = None if dtype is None else float_dtype(dtype)
    found: list[Entry] = []
    latest: list[Any] = [None, None, None]
    wanted = None if dtype is None else dtype_in(model, dtype)
    buffers = {path for f in find_slots(model, ("buffer",)) for path in expand(f.path)}
    for source, weight, disk in each_weight(model, Layer):
        pieces = _Pieces(source, weight, disk, latest)
        if disk is None:
            floating = jnp.issubdtype(weight.dtype, jnp.floating)
            kind = wanted(source.path) if wanted is not None and floating else np.dtype(weight.dtype)
            if kind == np.int32 and source.path in buffers:  # torch's whole numbers, of which JAX has the half
                kind = np.dtype(np.int64)
            for name, shape in zip(source.names, source.shapes(), strict=True):
                found.append(Entry(name, tuple(shape), kind, partial(_read, pieces, name, kind), pieces))
        else:
            for name, value in pieces.all().items():
                found.append(Entry(name, value.shape, value.dtype, partial(_read, pieces, name, value.dtype), pieces))
    for name, value in family_of(model).constants(model).items():
        found.append(Entry(name, value.shape, value.dtype, partial(_constant, value)))
    names = Counter(e.name for e in found)
    if twice := [n for n, count in names.items() if count > 1]:
        raise ValueError(
            f"save: two arrays of the model have the name {twice[0]!r} in the file; look at the family's names="
        )
    return found


def _read(pieces: _Pieces, name: str, dtype: np.dtype[Any], mine: bool = True) -> np.ndarray | None:
    if not mine:
        pieces.bring()
        return None
    return pieces.all()[name].astype(dtype, copy=False)


def _constant(value: np.ndarray, mine: bool = True) -> np.ndarray | None:
    return value if mine else None


class Layer(NamedTuple):
    """One layer of a stacked array, not yet taken out."""

    leaf: Any
    number: int

    @property
    def dtype(self) -> Any:
        return self.leaf.dtype


class _Pieces:
    """The tensors of one array of the model. The latest ones are kept, so that an array comes to the host once."""

    def __init__(self, source: Tensors, weight: Any, disk: DiskFormat | None, latest: list[Any]) -> None:
        self.source, self.weight, self.disk, self.latest = source, weight, disk, latest

    def bring(self) -> None:
        """The array to this process, if others hold parts of it: a part that all of them take part in."""
        if self.latest[0] is not self:
            self.latest[:] = [None, None, None]  # free the last ones first
            here = jax.tree.map(_here, self.weight, is_leaf=lambda x: isinstance(x, Layer))
            self.latest[:] = [self, here, None]

    def all(self) -> dict[str, np.ndarray]:
        self.bring()
        if self.latest[2] is None:
            host = jax.tree.map(to_host, self.latest[1], is_leaf=lambda x: isinstance(x, Layer))
            if self.disk is None:
                found = dict(zip(self.source.names, self.source.split(host), strict=True))
            else:
                found = self.disk.writer(self.source, host)  # type: ignore[misc]
            self.latest[1:] = [None, {name: np.asarray(value) for name, value in found.items()}]
        return self.latest[2]


def _here(leaf: Any) -> Any:
    """What this process can bring to its host by itself."""
    if isinstance(leaf, Layer) and isinstance(leaf.leaf, jax.Array) and not leaf.leaf.is_fully_addressable:
        return local(leaf.leaf[leaf.number])
    return leaf if isinstance(leaf, Layer) else local(leaf)


def to_host(leaf: Any) -> np.ndarray:
    """An array in the host's memory: on CPU its own bytes. JAX keeps copies with their array: ask a passing one."""
    if isinstance(leaf, Layer):
        array = leaf.leaf
        on_host = not isinstance(array, jax.Array) or len(array.sharding.device_set) == 1
        return to_host(array)[leaf.number, ...] if on_host else to_host(array[leaf.number])
    leaf = local(leaf)
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    passing = jax.make_array_from_single_device_arrays(
        leaf.shape, leaf.sharding, [s.data for s in leaf.addressable_shards]
    )
    return np.asarray(passing)


def each_weight(
    model: Any, layer: Callable[[Any, int], Any], rules: Sequence[Rule] | None = None, format: DiskFormat | None = None
) -> Iterator[tuple[Tensors, Any, DiskFormat | None]]:
    """Every array of a model by layer, with its names in the file; weights in a format of their own come whole.

    `rules` are those of the names, Hugging Face's if they are `None`; `format` is how those weights are written.
    """
    adapters = [path for path, node in nodes(model) if is_adapter(node)]
    if "" in adapters:
        raise ValueError(
            f"the model is a {type(model).__name__} around another, which a checkpoint cannot hold. Write both: "
            "ef.save(model.base, directory), ef.save_adapter(model, another)."
        )
    if adapters:
        raise ValueError(
            f"the model has adapters ({adapters[0]}{', ...' if len(adapters) > 1 else ''}), which a "
            "checkpoint cannot hold. Fold them in first, ef.merge_lora(model), or write them "
            "alone, ef.save_adapter(model, directory)."
        )
    rules = family_of(model).names(model) if rules is None else rules
    special = {expand(f.path)[0] for f in find_slots(model) if not is_leaf(f.weight)}
    format = writer_for(model) if format is None else format
    for path, node in units(model, special):
        singles = expand(path)
        disk = format if singles[0] in special else None
        stacked = singles[0] != path
        for index, single in enumerate(singles):
            one = jax.tree.map(lambda leaf, i=index: layer(leaf, i), node) if stacked else node
            shape = tuple(shape_of(node))[1:] if stacked else tuple(shape_of(node))
            found = tensors_for(single, shape, rules)
            yield found if disk is None else found.busy, one, disk
