"""The mxfp4 layout of gpt-oss on disk, read: experts in one tensor, four bits an entry.

Of experts `P`, `(experts, out, in)` (a plain file has `(experts, in, out)`): `P_blocks` uint8
`(experts, out, in / 32, 16)`, two e2m1 a byte, the first in the low bits; `P_scales` uint8 `(experts, out, in / 32)`, an
exponent plus 127. They are the arrays of `Micro` as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.tree import at
from ..io.formats import Packed, register
from ..names.rules import Tensors
from .micro import Micro
from .pieces import dense_dtype


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


register("mxfp4", reader=read)
