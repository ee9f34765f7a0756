"""Recurrent layers that a program runs whole, as the families do."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ....nn.recurrent.delta import delta_chunks
from ....nn.recurrent.kda import channel_delta_chunks
from ....nn.recurrent.state import Documents
from .table import torch_op


@torch_op.register("easyfn.delta_rule.default")
def delta_rule(q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
    """From an empty state, each row one document: a module has set to zero what its padding says."""
    batch, length = q.shape[:2]
    if not v.size:
        return v
    real = jnp.ones((batch, length), bool)
    documents = Documents(real, jnp.zeros((batch, length), jnp.int32), jnp.ones((batch,), jnp.int32))
    state = jnp.zeros((batch, *k.shape[2:], v.shape[-1]), jnp.float32)
    rule = delta_chunks if g.ndim == 3 else channel_delta_chunks
    return rule(q, k, v, g, beta, documents, state)[0]
