"""Dtypes by any of their names, and tensors of any library as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.dtype import by_name as dtype_of, float_dtype as float_dtype


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor as a numpy array of the same bits; torch's CPU tensors without a copy."""
    if type(tensor).__module__.partition(".")[0] != "torch":
        return np.asarray(tensor)
    dtype = dtype_of(tensor.dtype)
    tensor = tensor.detach().cpu().contiguous()
    if dtype.kind in "fiubc" and dtype.type.__module__ == "numpy":
        return tensor.numpy()
    import torch

    width = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return tensor.view(width).numpy().view(dtype)
