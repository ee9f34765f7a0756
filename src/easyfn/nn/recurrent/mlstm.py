"""The matrix memory of xLSTM (Beck et al. 2024, arXiv 2405.04517): linear attention with exponential gates.

`C = f C + i k v^T`, `n = f n + i k`, and a query reads `C^T q / max(|n . q|, 1)`. The input gate is an exponential, so memory
and normalizer are kept relative to the largest exponent so far. In a chunk of the sequence it is attention whose scores
decay; chunks pass the memory on.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, slots
from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear, along_last, declare
from .conv import before_first
from .state import Documents, RecurrentState

NEVER = -1e38  # the exponent of what is not there: finite, so that no difference is NaN


def matrix_memory(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gate: jax.Array,
    forget: jax.Array,
    documents: Documents,
    state: jax.Array,
    *,
    chunk: int = 64,
    eps: float = 1e-6,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence over a sequence, in parallel inside of chunks.

    All float32: `q`, `k` `(batch, seq, heads, key_dim)`, `q` scaled; `v` `(batch, seq, heads, value_dim)`; the logs of both
    gates `(batch, seq, heads)`, at padding `NEVER` and 0; `state` `(batch, heads, key_dim, value_dim + 2)`: of every row of
    the memory its values, the normalizer, and the exponent that both are relative to. Returns outputs shaped as `v`, and the
    last state.
    """
    batch, length, heads, _ = q.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def cut(x: jax.Array, fill: float = 0.0) -> jax.Array:
        """`(batch, seq, heads, ...)` to `(chunks, batch, heads, chunk, ...)`."""
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), (1, 3), (0, 2))

    index = jnp.pad(documents.index, ((0, 0), (0, pad)), mode="edge")
    index = jnp.moveaxis(index.reshape(batch, count, chunk), 1, 0)
    before = jnp.concatenate([jnp.zeros_like(index[:1, :, 0]), index[:-1, :, -1]])  # document of the incoming state
    lower = jnp.tril(jnp.ones((chunk, chunk), bool))[None]
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)  # the normalizer is one more column

    @jax.checkpoint
    def one(state: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, gate, forget, index, before = part
        memory, top = state[..., :-1], state[:, :, 0, -1]
        total = jnp.cumsum(forget, axis=2)  # log of the decay since the chunk began
        incoming = (index == before[:, None])[:, None]
        ahead = jnp.concatenate([before[:, None], index[:, :-1]], axis=1)
        begins = jnp.where(index != ahead, jnp.arange(chunk)[None], 0)
        first = jnp.broadcast_to(jax.lax.cummax(begins, axis=1)[:, None], total.shape)
        began = jnp.take_along_axis(total - forget, first, axis=2)  # where the document of a token did
        carried = jnp.where(incoming, total + top[..., None], total - began)  # a document begins with an exponent of 0

        same = ((index[:, :, None] == index[:, None, :]) & lower)[:, None]
        apart = jnp.where(same, total[..., :, None] - total[..., None, :] + gate[..., None, :], NEVER)
        most = jnp.maximum(carried, jnp.max(apart, axis=-1))
        scores = (q @ jnp.swapaxes(k, -1, -2)) * jnp.exp(apart - most[..., None])
        kept = jnp.where(incoming, jnp.exp(carried - most), 0.0)[..., None]
        read = (q * kept) @ memory + scores @ v
        bound = jnp.maximum(jnp.abs(read[..., -1:]), jnp.exp(-most)[..., None])
        out = read[..., :-1] / (bound + eps)

        last = (index == index[:, -1:])[:, None]
        added = jnp.where(last, total[..., -1:] - total + gate, NEVER)
        new_top = jnp.maximum(carried[..., -1], jnp.max(added, axis=-1))
        stays = jnp.where(incoming[..., -1], jnp.exp(carried[..., -1] - new_top), 0.0)[..., None, None]
        weighted = k * jnp.exp(added - new_top[..., None])[..., None]
        memory = memory * stays + jnp.swapaxes(weighted, -1, -2) @ v
        exponent = jnp.broadcast_to(new_top[..., None, None], (*memory.shape[:-1], 1))
        return jnp.concatenate([memory, exponent], axis=-1), out

    parts = (*map(cut, (q, k, v)), cut(gate, NEVER), cut(forget), index, before)
    state, out = jax.lax.scan(one, state, parts)
    out = jnp.moveaxis(out, (0, 2), (1, 3)).reshape(batch, count * chunk, heads, -1)
    return out[:, :length], state


class MatrixLSTM(eqx.Module):
    """xLSTM's recurrent layer: a norm of each head and a sigmoid gate behind the memory. Names are those of its files.

    The logits of both exponential gates are held within `softcap`.
    """

    q: Linear
    k: Linear
    v: Linear
    ogate_preact: Linear
    igate_preact: Linear
    fgate_preact: Linear
    multihead_norm: HeadsNorm
    out_proj: Linear
    heads: int = eqx.field(static=True)
    dims: tuple[int, int] = eqx.field(static=True)  # of a key and of a value
    softcap: float | None = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        *,
        heads: int,
        key_width: int,
        value_width: int,
        softcap: float | None = 15.0,
        chunk: int = 64,
        eps: float = 1e-6,
        norm_eps: float = 1e-6,
    ) -> None:
        if key_width % heads or value_width % heads:
            raise ValueError(
                f"keys of {key_width} and values of {value_width} entries do not divide into {heads} heads"
            )
        into = lambda size: Linear(hidden_size, size, axes=("heads", "embed"))
        gate = lambda: Linear(hidden_size, heads, True, axes=(None, "embed"))
        self.q, self.k, self.v, self.ogate_preact = (
            into(key_width),
            into(key_width),
            into(value_width),
            into(value_width),
        )
        self.igate_preact, self.fgate_preact = gate(), gate()
        self.multihead_norm = HeadsNorm(heads, value_width, norm_eps)
        self.out_proj = Linear(value_width, hidden_size, axes=("embed", "heads"))
        self.heads = heads
        self.dims = key_width // heads, value_width // heads
        self.softcap = softcap
        self.chunk = chunk
        self.eps = eps

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any]:
        (batch, length, _), f32 = x.shape, jnp.float32
        state: Any = empty_state(self, batch) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        by_head = lambda part: part.reshape(batch, length, self.heads, -1).astype(f32)
        q, k, v = by_head(self.q(x)) * self.dims[0] ** -0.5, by_head(self.k(x)), by_head(self.v(x))
        gate, forget = self._capped(self.igate_preact(x)), jax.nn.log_sigmoid(self._capped(self.fgate_preact(x)))
        real = documents.real[..., None]
        gate, forget = jnp.where(real, gate, NEVER), jnp.where(real, forget, 0.0)  # padding says nothing
        y, ssm = matrix_memory(q, k, v, gate, forget, documents, state.ssm, chunk=self.chunk, eps=self.eps)
        y = self.multihead_norm(y).astype(x.dtype) * jax.nn.sigmoid(self.ogate_preact(x))
        return self.out_proj(y), None if cache is None else RecurrentState(None, ssm, documents.last)

    def _capped(self, logits: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        return logits if self.softcap is None else self.softcap * jnp.tanh(logits / self.softcap)


class HeadsNorm(eqx.Module):
    """LayerNorm of each head; the weight is one row for all: `(batch, seq, heads, dim)` to `(batch, seq, heads * dim)`."""

    weight: Weight
    heads: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, heads: int, width: int, eps: float) -> None:
        self.weight = declare(width)
        self.heads = heads
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        x = x.reshape(*x.shape[:2], -1)
        return x * along_last(dense(self.weight).astype(x.dtype), x)


@slots.register(HeadsNorm)
def _(norm: HeadsNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "ones")}


def empty_state(layer: MatrixLSTM, batch_size: int) -> RecurrentState:
    """The state before the first token: no memory, relative to an exponent of 0."""
    keys, values = layer.dims
    return before_first(None, batch_size, None, layer.heads, keys, values + 2)


@layer_cache.register(MatrixLSTM)
def _(layer: MatrixLSTM, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(layer, batch_size)
