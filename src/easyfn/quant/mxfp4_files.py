"""The mxfp4 layout of gpt-oss on disk, both ways: experts in one tensor, four bits an entry.

Of experts `P`, `(experts, out, in)` (a plain file has `(experts, in, out)`): `P_blocks` uint8
`(experts, out, in / 32, 16)`, two e2m1 a byte, the first in the low bits; `P_scales` uint8 `(experts, out, in / 32)`, an
exponent plus 127. They are the arrays of `Micro` as they are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.slots import find_slots
from ..core.tree import at, expand, is_leaf
from ..io.formats import Packed, file_names, register
from ..names.rules import Tensors
from .micro import Micro
from .pieces import dense_dtype

EXPERTS = 'has mxfp4 for experts only, ef.QuantConfig("mxfp4", pattern="experts")'


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that such a checkpoint holds quantized (see `easyfn.io.formats.Reader`).

    The name of a slot's tensor in a plain file, or its path, tells its `_blocks` and `_scales`; `modules_to_not_convert`
    needs no rule. Raises `ValueError` for keys of the config that easyfn does not know.
    """
    for key, value in settings.items():
        if key not in ("quant_method", "modules_to_not_convert", "dequantize") and value is not None:
            raise ValueError(
                f"the checkpoint is quantized with mxfp4 and has {key}={value!r}, which easyfn does not know. Load the "
                "unquantized checkpoint with ef.load(..., quantize='mxfp4')"
            )
    common = dense_dtype(header)
    found = {}
    for path, source in sources.items():
        each = (*source.names[: len(source.names) == 1], path, path.partition(".")[2])
        name = next((n for n in each if f"{n}_blocks" in header), None)
        if name is not None:
            make = functools.partial(_make, path, source.shape, common or at(model, path).dtype)
            found[path] = Packed((f"{name}_blocks", f"{name}_scales"), make)
    return found


def _make(path: str, shape: tuple[int, ...], common: Any, parts: list[np.ndarray], dtype: Any) -> Micro:
    blocks, scales = parts
    codes = blocks.reshape(*blocks.shape[:-2], -1)
    if (*codes.shape[:-1], 2 * codes.shape[-1]) != shape or (*scales.shape[:-1], 32 * scales.shape[-1]) != shape:
        raise ValueError(f"{path}: the model has {shape}, the file blocks {blocks.shape} and scales {scales.shape}")
    return Micro(codes, scales, kind="mxfp4", dtype=jnp.dtype(dtype or common).name)


def write(source: Tensors, weight: Micro) -> dict[str, Any]:
    """The tensors that hold the experts of a layer (see `easyfn.io.formats.Writer`)."""
    (name,) = source.names
    return {f"{name}_blocks": weight.codes.reshape(*weight.scales.shape, 16), f"{name}_scales": weight.scales}


def refuses(weight: Micro) -> str | None:
    """Why the layout cannot hold a weight."""
    return None if weight.kind == "mxfp4" and weight.codes.ndim > 2 else EXPERTS


def settings(model: Any) -> dict[str, Any]:
    """The `quantization_config` of a model, as gpt-oss has it: the modules that stay as they are, with `*` for a number.

    Raises `ValueError` where transformers could not read the model: it reads the layout in gpt-oss, for all experts of a
    layer and nothing else.
    """
    if model.config.model_type != "gpt_oss":
        raise ValueError(f"save: transformers reads mxfp4 experts in gpt_oss, and this is {model.config.model_type}")
    names: dict[str, Tensors] = file_names(model)
    kept: dict[str, bool] = {}  # module of the file -> whether its weights are plain
    for found in find_slots(model, ("linear", "experts", "head", "router", "embedding")):
        plain = is_leaf(found.weight)
        if not plain and found.slot.role != "experts":
            raise ValueError(f"save: this layout {EXPERTS} ({found.path})")
        for path in expand(found.path):
            module = names[path].names[0].rpartition(".")[0]
            if kept.setdefault(module, plain) != plain:
                raise ValueError(f"save: of {module} some weights are mxfp4 and some are not: quantize all or none")
    left = [module for module, plain in kept.items() if plain]
    some = [m for m in left if m.endswith(".experts")]  # of some layers only: these are named one by one
    rest = [re.sub(r"\.\d+\.", ".*.", m) for m in left if m not in some]
    return {"quant_method": "mxfp4", "modules_to_not_convert": list(dict.fromkeys([*rest, *some]))}


register("mxfp4", reader=read, writer=write, types=(Micro,), settings=settings, refuses=refuses)
