"""Lightning attention (Qin et al. 2024, arXiv 2401.04658), as MiniMax-01 has it: linear attention that fades with distance."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import ByLayer, Slot, Weight, dense, slots
from ..activation import activation
from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear, declare
from ..norm import RMSNorm
from .conv import before_first
from .ssd import scan_chunks, scan_step
from .state import Documents, RecurrentState


class LightningAttention(eqx.Module):
    """`s = exp(-slope) s + k v^T`, `y = q s` in every head; what all heads say is normed as one row and gated.

    Queries, keys and values go through `act`. Heads fade at their own slopes, those of ALiBi times a number that
    falls from 1 in the first layer to nearly 0 in the last. The file holds the slopes and three tables made of them
    for blocks of `block` tokens: those are kept for the way back, and read by nothing.
    """

    qkv_proj: Linear  # head by head: its query, its key, its value
    norm: RMSNorm
    output_gate: Linear
    out_proj: Linear
    slope_rate: Weight
    query_decay: Weight
    key_decay: Weight
    diagonal_decay: Weight
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    block: int = eqx.field(static=True)
    act: str = eqx.field(static=True)

    def __init__(self, hidden_size: int, *, heads: int, head_dim: int, block: int, act: str = "silu") -> None:
        activation(act)
        rows = heads * head_dim
        self.qkv_proj = Linear(hidden_size, 3 * rows, axes=("heads", "embed"))
        self.norm = RMSNorm(rows, 1e-6)
        self.output_gate = Linear(hidden_size, rows, axes=("heads", "embed"))
        self.out_proj = Linear(rows, hidden_size, axes=("embed", "heads"))
        self.slope_rate = declare(heads, 1, 1)
        self.query_decay = declare(heads, block, 1)
        self.key_decay = declare(heads, block, 1)
        self.diagonal_decay = declare(1, heads, block, block)
        self.heads = heads
        self.head_dim = head_dim
        self.block = block
        self.act = act

    def __call__(
        self, x: jax.Array, context: Context, cache: Any = None
    ) -> tuple[jax.Array, RecurrentState | None, None]:
        batch, length, _ = x.shape
        state: Any = empty_state(self, batch) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        qkv = activation(self.act)(self.qkv_proj(x)).reshape(batch, length, self.heads, 3 * self.head_dim)
        q, k, v = jnp.split(qkv.astype(jnp.float32), 3, axis=-1)
        time = jnp.broadcast_to(documents.real[..., None], (batch, length, self.heads)).astype(jnp.float32)
        fading = -dense(self.slope_rate).astype(jnp.float32).reshape(-1)
        if length == 1:
            y, ssm = scan_step(v, time, fading, k, q, documents, state.ssm)
        else:
            y, ssm = scan_chunks(v, time, fading, k, q, documents, state.ssm, chunk=self.block)
        y = self.norm(y.reshape(batch, length, -1).astype(x.dtype))
        y = self.out_proj(jax.nn.sigmoid(self.output_gate(x)) * y)
        return y, None if cache is None else RecurrentState(None, ssm, documents.last), None


@slots.register(LightningAttention)
def _(layer: LightningAttention) -> dict[str, Slot]:
    def slopes(number: int, count: int) -> jax.Array:
        depth = 1.0 - number / (count - 1 + 1e-5) + 1e-5
        return (2.0 ** (-8.0 / layer.heads * jnp.arange(1, layer.heads + 1)) * depth)[:, None, None]

    places = jnp.arange(1, layer.block + 1)[None, :, None]
    apart = places - places.swapaxes(1, 2)
    tables = {
        "slope_rate": lambda slope: slope,
        "query_decay": lambda slope: jnp.exp(-slope * places),
        "key_decay": lambda slope: jnp.exp(-slope * (layer.block - places)),
        "diagonal_decay": lambda slope: jnp.where(apart >= 0, jnp.exp(-slope * apart), 0.0)[None],
    }

    def buffer(name: str) -> Slot:
        rank = 4 if name == "diagonal_decay" else 3
        axes = tuple("heads" if n == rank - 3 else None for n in range(rank))
        return Slot(
            "buffer", axes, ByLayer(lambda number, count, _, dtype: tables[name](slopes(number, count)).astype(dtype))
        )

    return {name: buffer(name) for name in tables}


def empty_state(layer: LightningAttention, batch_size: int) -> RecurrentState:
    return before_first(None, batch_size, None, layer.heads, layer.head_dim, layer.head_dim)


@layer_cache.register(LightningAttention)
def _(layer: LightningAttention, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(layer, batch_size)
