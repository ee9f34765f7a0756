"""Dtypes by any of their names, and tensors of any library as numpy arrays."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np


def dtype_of(dtype: Any) -> np.dtype[Any]:
    """The numpy dtype of a name, a JAX or numpy dtype, or a torch dtype."""
    name = str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype
    if isinstance(name, str) and hasattr(ml_dtypes, name):
        return np.dtype(getattr(ml_dtypes, name))
    return jnp.dtype(name)


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype that the floating point arrays of a model shall have; integers come from `ef.quantize`."""
    try:
        found = dtype_of(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(
            f"dtype={dtype!r} is no floating point dtype: give 'float32', 'bfloat16' or 'float16', None to keep each "
            "array's own, or quantize= for integers"
        )
    return found


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
