"""AWQ's layout on disk, read: AutoAWQ's `gemm`, 4 bits with zeros (Lin et al. 2023, arXiv 2306.00978).

Of a layer `P` with a weight `(out, in)`: `P.qweight` int32 `(in, out / 8)`, eight rows a word, in the order of `ORDER`
from the lowest bits on; `P.qzeros` int32 `(groups, out / 8)`, likewise; `P.scales` float16 `(groups, out)`. The weight
is `scales * (codes - zeros)`; the scales that AWQ found for the activations are in the layers before it already.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..io.formats import Packed, register
from ..names.rules import Tensors
from .gptq import quantized_layers, unpack, with_idle_biases
from .grouped import Grouped, grouped
from .pieces import join

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbouring rows the first, second, ... nibble of a word holds


def read(
    model: Any, settings: Mapping[str, Any], sources: Mapping[str, Tensors], header: Mapping[str, Any]
) -> dict[str, Packed]:
    """The slots that an AWQ checkpoint holds quantized (see `easyfn.io.formats.Reader`).

    `modules_to_not_convert` needs no rule: the tensors tell. Raises `ValueError` for another layout than `gemm`.
    """
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    bits = settings.get("bits", settings.get("w_bit", 4))
    if version != "gemm" or bits != 4:
        raise ValueError(
            f"the checkpoint is quantized with awq, version {version!r}, {bits} bits; easyfn reads version 'gemm' of 4 "
            "bits, what AutoAWQ writes by default"
        )
    found = {}
    for path, source in sources.items():
        if layers := quantized_layers(source, header):
            names = tuple(f"{layer}.{part}" for layer in layers for part in ("qweight", "qzeros", "scales"))
            found[path] = Packed(names, functools.partial(_make, path, source))
    return with_idle_biases(found, sources, header)


def _make(path: str, source: Tensors, parts: list[np.ndarray], dtype: Any) -> Any:
    weights = [_matrix(path, dtype, *parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return join(source, weights)


def _matrix(path: str, dtype: Any, qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray) -> Grouped:
    width, out = qweight.shape[0], 8 * qweight.shape[1]
    if scales.shape[1] != out or qzeros.shape != (scales.shape[0], out // 8) or width % scales.shape[0]:
        raise ValueError(
            f"{path}: qweight {qweight.shape}, qzeros {qzeros.shape} and scales {scales.shape} do not belong together"
        )
    codes, zeros = (np.ascontiguousarray(_unpack(part).T) for part in (qweight, qzeros))
    return grouped(codes, np.ascontiguousarray(scales.T), zeros, bits=4, dtype=dtype or scales.dtype, name="awq")


def _unpack(packed: np.ndarray) -> np.ndarray:
    nibbles = unpack(packed, 4).reshape(packed.shape[0], -1, 8)
    return nibbles[..., np.argsort(ORDER)].reshape(packed.shape[0], -1)


register("awq", reader=read)
