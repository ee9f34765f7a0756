"""Disk formats: how files that are quantized already reach a model, and how quantized models reach files.

This is where the files meet the weight formats, without either importing the other. A quantization method
registers itself once, under the `quant_method` of a `config.json`'s `quantization_config`:

```python
from easyfn.io import formats

formats.register("my_method", reader=lambda model, settings, sources, header: {})
assert formats.disk_format("my_method").reader is not None
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._tree import near
from .names import Tensors
from .safetensors import Info


class Packed(NamedTuple):
    """One weight slot of one layer in a quantized file: the tensors that it needs, and the weight they make.

    `make` is given the tensors in the order of `names`, as numpy arrays of the dtypes of the file (its own copies: they
    may be kept), and returns what goes into the slot. `dtype`, if set, is what `ef.load(dtype=...)` asked for.
    """

    names: tuple[str, ...]
    make: Callable[[list[np.ndarray], Any], Any]


Reader = Callable[[Any, Mapping[str, Any], Mapping[str, Tensors], Mapping[str, Info]], dict[str, Packed]]
"""`reader(model, settings, sources, header)`: the slots that the file holds quantized, by the path of the slot.

- `model`: the abstract dense model, unstacked.
- `settings`: the `quantization_config`.
- `sources`: for every path of the model, the names its dense weight would have in the file (`sources[path].names`).
- `header`: every tensor of the file by name, as `Info(dtype, shape, ...)`.

Paths that are not in the answer are read as plain arrays. Tensors that no `Packed` names and no path needs are reported
as unexpected.
"""

Writer = Callable[[Tensors, Any], dict[str, Any]]
"""`writer(source, weight)`: the tensors (numpy or JAX arrays) that a file holds for `weight`, by their full names.

`source.names` are the names of the dense weight, `source.shape` its shape. For a stacked model it is called for
every layer,
with that layer's slice of the weight.
"""


class DiskFormat(NamedTuple):
    """What is registered for a `quant_method`."""

    method: str
    reader: Reader | None
    writer: Writer | None
    types: tuple[type, ...]  # the weight formats that `writer` writes
    settings: Callable[[Any], dict[str, Any]] | None  # of a model: the `quantization_config` to write


_formats: dict[str, DiskFormat] = {}


def register(
    method: str,
    *,
    reader: Reader | None = None,
    writer: Writer | None = None,
    types: tuple[type, ...] = (),
    settings: Callable[[Any], dict[str, Any]] | None = None,
    override: bool = False,
) -> None:
    """Registers a quantization method by the `quant_method` of `quantization_config`.

    `reader` (see `Reader`) serves `ef.load`. `writer` (see `Writer`), the weight `types` that it writes, and `settings`
    (a function of the model that gives the `quantization_config`) serve `ef.save`.
    """
    if method in _formats and not override:
        raise ValueError(f"the disk format {method!r} is registered already; pass override=True to replace it")
    _formats[method] = DiskFormat(method, reader, writer, tuple(types), settings)


def disk_format(method: str) -> DiskFormat:
    """The format of a `quant_method`; an unknown one is a `ValueError` that lists those that are known."""
    if method not in _formats:
        raise ValueError(
            f"the checkpoint is quantized with {method!r}, which easyfn does not read. {near(method, _formats)} "
            "Load an unquantized checkpoint and use ef.load(..., quantize=ef.QuantConfig(...)), or register a reader "
            "with easyfn.io.formats.register."
        )
    return _formats[method]


def writer_of(weight: Any) -> DiskFormat | None:
    """The format that writes a weight, or `None` if its type has none. The last one registered wins."""
    for found in reversed(_formats.values()):
        if found.writer is not None and isinstance(weight, found.types):
            return found
    return None
