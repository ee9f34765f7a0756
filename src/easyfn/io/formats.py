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

from ..core.later import taught
from ..core.slots import find_slots
from ..core.tree import expand, is_leaf, near
from ..core.weight import format_of, shape_of
from ..names.rules import Tensors, tensors_for
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
    refuses: Callable[[Any], str | None]  # of a weight of these types: why the layout cannot hold it, or `None`


_formats: dict[str, DiskFormat] = {}


def register(
    method: str,
    *,
    reader: Reader | None = None,
    writer: Writer | None = None,
    types: tuple[type, ...] = (),
    settings: Callable[[Any], dict[str, Any]] | None = None,
    refuses: Callable[[Any], str | None] = lambda weight: None,
    override: bool = False,
) -> None:
    """Registers a quantization method by the `quant_method` of `quantization_config`.

    `reader` (see `Reader`) serves `ef.load`. `writer` (see `Writer`), the weight `types` that it writes, and `settings`
    (a function of the model that gives the `quantization_config`) serve `ef.save`. `refuses(weight)` says, of a weight of
    these types, why the layout cannot hold it, or `None`.
    """
    if method in _formats and not override:
        raise ValueError(f"the disk format {method!r} is registered already; pass override=True to replace it")
    _formats[method] = DiskFormat(method, reader, writer, tuple(types), settings, refuses)


def disk_format(method: str) -> DiskFormat:
    """The format of a `quant_method`; an unknown one is a `ValueError` that lists those that are known."""
    taught(__name__)
    if method not in _formats:
        raise ValueError(
            f"the checkpoint is quantized with {method!r}, which easyfn does not read. {near(method, _formats)} "
            "Load an unquantized checkpoint and use ef.load(..., quantize=ef.QuantConfig(...)), or register a reader "
            "with easyfn.io.formats.register."
        )
    return _formats[method]


def writer_for(model: Any) -> DiskFormat | None:
    """The format that writes all weights of a model that are no arrays; `None` if it has none such.

    Where several could, the one that is registered for the fewest types: the most particular; of equals the last one
    registered. Raises `ValueError` where none can, and says of each why.
    """
    special = [(f.path, f.weight) for f in find_slots(model) if not is_leaf(f.weight)]
    if not special:
        return None
    writers = [found for found in reversed(_formats.values()) if found.writer is not None]
    for path, weight in special:
        if not any(isinstance(weight, found.types) for found in writers):
            raise ValueError(
                f"save: {path} is a {type(weight).__name__}, for which no disk format is registered. "
                "Write the dense model, ef.save(ef.dequantize(model), directory), or register a writer."
            )
    able: list[DiskFormat] = []
    reasons: list[str] = []
    for found in writers:
        if (reason := _why_not(found, model, special)) is None:
            able.append(found)
        else:
            reasons.append(f"{found.method} {reason}")
    if not able:
        names = sorted({str(format_of(weight)) for _, weight in special})
        raise ValueError(
            f"save: no disk format holds all of {', '.join(names)}: {'; '.join(reasons)}. Write the dense model, "
            "ef.save(ef.dequantize(model), directory)."
        )
    return min(able, key=lambda found: len(found.types))


def _why_not(found: DiskFormat, model: Any, special: list[tuple[str, Any]]) -> str | None:
    """Why a format cannot hold the special weights of a model, or `None`."""
    for path, weight in special:
        if not isinstance(weight, found.types):
            return f"has no {format_of(weight) or type(weight).__name__} ({path})"
        if (reason := found.refuses(weight)) is not None:
            return f"{reason} ({path})"
    try:  # what is wrong with all of them together; a layer alone has no config to write them into
        if found.settings is not None and hasattr(model, "config"):
            found.settings(model)
    except ValueError as error:
        return f"refuses: {error}".replace("save: ", "")
    return None


def layout_of(model: Any) -> str | None:
    """The layout in which `ef.save` writes the quantized weights of a model: its `quant_method`; `None` if it has none.

    `bitsandbytes` for `8bit`, `nf4` and `fp4`; `fp8` for fp8 in blocks of 128x128; `mxfp4` for gpt-oss with experts in
    mxfp4; `compressed-tensors` for all else that it can hold, and for several formats in one model. Raises `ValueError`
    where no layout holds the model.

    ```python
    import jax, easyfn as ef
    from easyfn.io.formats import layout_of

    layer = ef.init(ef.nn.Linear(64, 64), key=jax.random.key(0))
    assert layout_of(layer) is None and layout_of(ef.quantize(layer, "nf4")) == "bitsandbytes"
    assert layout_of(ef.quantize(layer, "mxfp4")) == "compressed-tensors"
    ```
    """
    found = writer_for(model)
    return None if found is None else found.method


def file_names(model: Any) -> dict[str, Tensors]:
    """For every slot of every single layer of a model, by its path, the tensors that its dense weight has in a file."""
    from ..registry.family import family_of

    rules = family_of(model).names(model)
    out: dict[str, Tensors] = {}
    for found in find_slots(model):
        singles, shape = expand(found.path), tuple(shape_of(found.weight))
        stacked = singles[0] != found.path
        out |= {path: tensors_for(path, shape[1:] if stacked else shape, rules) for path in singles}
    return out
