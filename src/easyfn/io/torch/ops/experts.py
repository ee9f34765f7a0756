"""Experts: rows sorted by expert reach the experts' weights through the slot."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ....core.weight import ragged_dot
from .products import Turned, as_dense
from .table import torch_op


@torch_op.register("easyfn.grouped_linear.default", weights=(1,))
def grouped_linear(x: Any, weight: Any, ends: Any) -> Any:
    """Those of expert `e` are the rows from `ends[e - 1]` to `ends[e]`."""
    sizes = jnp.diff(ends.astype(jnp.int32), prepend=0)
    return ragged_dot(as_dense(weight) if isinstance(weight, Turned) else weight, x, sizes).astype(x.dtype)
