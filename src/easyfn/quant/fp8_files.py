"""The fp8 layout on disk, both ways: DeepSeek's blocks of 128x128, and what else transformers' `FineGrainedFP8` reads.

Of a weight `P.weight` of shape `(out, in)`: `P.weight` float8_e4m3fn, `P.weight_scale_inv` `(out / 128, in / 128)`,
rounded up, by which the codes are multiplied (in float32, or a power of two as float8_e8m0fnu); one scale for the whole
matrix where `weight_block_size` is null. `mxfp8` is the same with a power of two for 32 entries of a row. With
`expert_dtype` `"fp4"` (DeepSeek-V4) the experts are mxfp4: `P.weight` int8 `(out, in / 2)`, two e2m1 a byte, the first in
the low bits, and a power of two for every 32 entries. With `activation_scheme` `"static"` also `P.activation_scale`.
`"dynamic"` is how kernels of some GPUs multiply and not part of the weights: as transformers without such a GPU, easyfn
multiplies exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.slots import find_slots
from ..core.tree import at, expand, is_leaf
from ..io.formats import Packed, file_names, register
from ..names.rules import Tensors
from .compressed_tensors import as_dtype
from .fp8 import E4M3, FP8
from .micro import Micro
from .pieces import by_row, cut, dense_dtype, join, quantized

_KNOWN = {
    "quant_method": ("fp8", "mxfp8"),
    "activation_scheme": ("dynamic", "static", None),
    "fmt": ("e4m3", None),
    "scale_fmt": ("float", "ue8m0", None),
    "expert_dtype": ("fp8", "fp4", None),
}
E8M0 = np.dtype(jnp.float8_e8m0fnu)
_LISTS = {"weight_block_size", "modules_to_not_convert", "ignored_layers", "modules_to_convert", "dequantize"}


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that an fp8 checkpoint holds quantized (see `easyfn.io.formats.Reader`).

    `modules_to_not_convert` needs no rule: the tensors tell. Raises `ValueError` for keys that easyfn does not know.
    """
    for key, value in settings.items():
        if key not in _LISTS and value not in _KNOWN.get(key, (None,)):
            raise ValueError(
                f"the checkpoint is quantized with fp8 and has {key}={value!r}, which easyfn does not know; it reads e4m3 "
                "in blocks, scheme 'dynamic' or 'static'. Load the unquantized checkpoint with ef.load(..., quantize=...)"
            )
    size = settings.get("weight_block_size")
    block = (0, 0) if size is None else (int(size[0]), int(size[1]))
    static = settings.get("activation_scheme") == "static"
    common = dense_dtype(header)
    found = {}
    for path, source in sources.items():
        if not quantized(source, lambda name: f"{name}_scale_inv" in header):
            continue
        names = [[name, f"{name}_scale_inv"] for name in source.names]
        if static:
            names = [[*own, f"{own[0].rpartition('.')[0]}.activation_scale"] for own in names]
        make = functools.partial(_make, path, source, block, len(names[0]), common or at(model, path).dtype)
        found[path] = Packed(tuple(name for own in names for name in own), make)
    return found


def _make(
    path: str, source: Tensors, block: tuple[int, int], count: int, common: Any, parts: list[np.ndarray], dtype: Any
) -> Any:
    name = jnp.dtype(dtype or common).name
    weights = [_matrix(path, block, name, *parts[i : i + count]) for i in range(0, len(parts), count)]
    return join(source, by_row(weights, source.together))


def _matrix(
    path: str,
    block: tuple[int, int],
    dtype: str,
    codes: np.ndarray,
    scales: np.ndarray,
    point: np.ndarray | None = None,
) -> FP8 | Micro:
    if codes.dtype in (np.int8, np.uint8):
        return _fp4(path, codes.view(np.uint8), scales, dtype)
    if codes.dtype != E4M3:
        raise ValueError(f"{path}: its codes are {codes.dtype}, not float8_e4m3fn")
    if block == (1, 32) and point is None and scales.dtype in (np.uint8, E8M0):
        if scales.shape != (codes.shape[0], codes.shape[1] // 32) or codes.shape[1] % 32:
            raise ValueError(f"{path}: {scales.shape} scales do not belong to {codes.shape} codes in blocks of {block}")
        return Micro(codes.view(np.uint8), scales.view(np.uint8), kind="mxfp8", dtype=dtype)
    if scales.dtype == np.uint8:
        scales = scales.view(E8M0)
    scales = scales.astype(np.float32)
    scales = scales.reshape(1, 1) if scales.size == 1 else scales
    down, across = (-(-n // (b or n)) for n, b in zip(codes.shape, block, strict=True))
    if scales.shape != (down, across):
        raise ValueError(f"{path}: {scales.shape} scales do not belong to {codes.shape} codes in blocks of {block}")
    activations = None if point is None else "static"
    point = None if point is None else point.astype(np.float32).reshape(1, 1)
    return FP8(codes.view(np.uint8), scales, point, block, activations, dtype)


def _fp4(path: str, codes: np.ndarray, scales: np.ndarray, dtype: str) -> Micro:
    if scales.dtype == np.float32:  # the same powers of two
        bits = scales.view(np.uint32)
        if np.any(bits & 0x807FFFFF):
            raise ValueError(f"{path}: scales of fp4 experts are powers of two, and the file has others")
        scales = (bits >> 23).astype(np.uint8)
    scales = scales if scales.dtype == np.uint8 else scales.view(np.uint8)
    if scales.shape != (codes.shape[0], codes.shape[1] // 16) or codes.shape[1] % 16:
        raise ValueError(f"{path}: {scales.shape} scales do not belong to {codes.shape} bytes of fp4, one for 16 bytes")
    return Micro(codes, scales, kind="mxfp4", dtype=dtype)


def write(source: Tensors, weight: FP8 | Micro) -> dict[str, Any]:
    """The tensors that hold a weight, or one layer of a stacked one (see `easyfn.io.formats.Writer`)."""
    out: dict[str, Any] = {}
    for name, piece in zip(source.names, cut(source, weight), strict=True):
        if isinstance(piece, Micro):
            out |= {name: as_dtype(piece.codes, np.int8), f"{name}_scale_inv": as_dtype(piece.scales, E8M0)}
        else:
            out |= {name: as_dtype(piece.codes, E4M3), f"{name}_scale_inv": piece.scales}
    return out


def refuses(weight: FP8 | Micro) -> str | None:
    """Why the layout cannot hold a weight, or readers would take it for another."""
    if isinstance(weight, Micro):
        return None if weight.kind == "mxfp4" and weight.codes.ndim > 2 else "has mxfp4 for experts only"
    if weight.block != (128, 128) or weight.activations is not None:
        return "has blocks of 128x128 only, and no rule for the input"
    # transformers divides the matrix by the grid of its scales.
    if any(
        size % 128 and count > 1 for size, count in zip(weight.codes.shape[-2:], weight.scales.shape[-2:], strict=True)
    ):
        return "has no blocks at the edge that are smaller than 128x128"
    return None


def settings(model: Any) -> dict[str, Any]:
    """The `quantization_config` of a model, as transformers writes it.

    Raises `ValueError` where transformers could not read the model: a quantized embedding, GPT-2's `Conv1D`.
    """
    names, plain = file_names(model), ["lm_head"]
    experts = set()
    for found in find_slots(model, ("linear", "experts", "head", "router", "embedding", "conv")):
        experts |= {type(found.weight)} if found.slot.role == "experts" else set()
        for path in expand(found.path):
            source = names[path]
            if is_leaf(found.weight):
                own = (path, *source.names) if found.slot.role != "embedding" else ()
                plain += [name.rpartition(".")[0] for name in own]
            elif source.transposed or found.slot.role == "embedding":
                raise ValueError(
                    f"save: {path} is fp8, and the fp8 layout has linear layers only, no Conv1D and no embeddings. Leave it "
                    "out of the pattern, or save ef.dequantize(model)."
                )
    if any(not is_leaf(f.weight) for f in find_slots(model, ("head",))):
        plain.remove("lm_head")
    if Micro in experts and (len(experts) > 1 or not any(isinstance(f.weight, FP8) for f in find_slots(model))):
        raise ValueError("save: this layout has mxfp4 for all experts beside fp8 in other layers")
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        **({"expert_dtype": "fp4"} if Micro in experts else {}),
        "modules_to_not_convert": list(dict.fromkeys(plain)),
    }


register("mxfp8", reader=read)
register("fp8", reader=read, writer=write, types=(FP8, Micro), settings=settings, refuses=refuses)
