"""Kimi delta attention (Kimi Team 2025, arXiv 2510.26692): the gated delta rule whose decay is apart for each channel of a key.

`S = diag(exp(g)) S`, then `S = S + k (beta (v - S^T k))^T`, and a query reads `S^T q`. As in [`easyfn.nn.delta_chunks`][], the
corrections of a chunk are one triangular system; what a token keeps of another is now a product over channels.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, slots
from ..activation import activation
from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear, along_last, declare
from ..norm import RMSNorm
from .conv import CausalConv1d, before_first
from .delta import delta_step, unit
from .state import Documents, RecurrentState, step_biases


def channel_delta_chunks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    documents: Documents,
    state: jax.Array,
    *,
    chunk: int = 32,
) -> tuple[jax.Array, jax.Array]:
    """[`easyfn.nn.delta_chunks`][] with a decay for each channel: `g` is `(batch, seq, heads, key_dim)`.

    Chunks are made one after the other, in the backward pass again: within one, the decays between all pairs of tokens
    are `chunk^2 * key_dim` numbers for each head, and their exponents are differences, so that none overflows.
    """
    batch, length, heads, _ = q.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def cut(x: jax.Array) -> jax.Array:
        """`(batch, seq, heads, ...)` to `(chunks, batch, heads, chunk, ...)`."""
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), (1, 3), (0, 2))

    index = jnp.pad(documents.index, ((0, 0), (0, pad)), mode="edge").reshape(batch, count, chunk)
    index = jnp.moveaxis(index, 1, 0)
    before = jnp.concatenate([jnp.zeros_like(index[:1, :, 0]), index[:-1, :, -1]])  # document of the incoming state
    lower = jnp.tril(jnp.ones((chunk, chunk), bool))[None]

    @jax.checkpoint
    def one(state: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, g, beta, index, before = part
        total = jnp.cumsum(g, axis=2)  # log of the decay since the chunk began
        end = index[:, -1]
        same = (index[:, :, None] == index[:, None, :]) & lower
        apart = total[:, :, :, None] - total[:, :, None]
        decay = jnp.exp(jnp.where(same[:, None, :, :, None], apart, -jnp.inf))
        where = lambda seen, x: jnp.exp(jnp.where(seen[:, None, :, None], x, -jnp.inf))
        reach = where(index == before[:, None], total)  # from the incoming state
        left = where(index == end[:, None], total[:, :, -1:] - total)  # to the outgoing one
        kept = jnp.exp(jnp.where((before == end)[:, None, None], total[:, :, -1], -jnp.inf))

        weighted = k * beta[..., None]
        system = jnp.tril(jnp.sum(weighted[:, :, :, None] * k[:, :, None] * decay, axis=-1), -1)
        wanted = jnp.concatenate([v * beta[..., None], weighted * reach], axis=-1)
        solved = jax.scipy.linalg.solve_triangular(
            system + jnp.eye(chunk)[None, None], wanted, lower=True, unit_diagonal=True
        )
        new, read = jnp.split(solved, [v.shape[-1]], axis=-1)
        new = new - read @ state
        within = jnp.sum(q[:, :, :, None] * k[:, :, None] * decay, axis=-1)
        out = (q * reach) @ state + within @ new
        return state * kept[..., None] + jnp.swapaxes(k * left, -1, -2) @ new, out

    state, out = jax.lax.scan(one, state, (*map(cut, (q, k, v, g, beta)), index, before))
    out = jnp.moveaxis(out, (0, 2), (1, 3)).reshape(batch, count * chunk, heads, -1)
    return out[:, :length], state


class KimiDeltaAttention(eqx.Module):
    """Linear attention by the delta rule with channel decays: a short convolution before it, a norm and a sigmoid gate on each
    head after it. Decays and gates come of two narrow projections each. Fields and names of tensors are those of the files.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    conv1d: CausalConv1d
    f_a_proj: Linear
    f_b_proj: Linear
    dt_bias: Weight
    A_log: Weight
    b_proj: Linear
    g_a_proj: Linear
    g_b_proj: Linear
    o_norm: RMSNorm
    o_proj: Linear
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    act: str = eqx.field(static=True)

    def __init__(
        self, hidden_size: int, *, heads: int, head_dim: int, kernel: int = 4, act: str = "silu", eps: float = 1e-5
    ) -> None:
        activation(act)
        width = heads * head_dim
        into = lambda: Linear(hidden_size, width, axes=("heads", "embed"))
        narrow = lambda: Linear(hidden_size, head_dim, axes=(None, "embed"))
        wide = lambda: Linear(head_dim, width, axes=("heads", None))
        self.q_proj, self.k_proj, self.v_proj = into(), into(), into()
        self.conv1d = CausalConv1d(3 * width, kernel, False, axes=("heads", None, None))
        self.f_a_proj, self.f_b_proj = narrow(), wide()
        self.dt_bias = declare(width)
        self.A_log = declare(1, 1, heads, 1)
        self.b_proj = Linear(hidden_size, heads, axes=("heads", "embed"))
        self.g_a_proj, self.g_b_proj = narrow(), wide()
        self.o_norm = RMSNorm(head_dim, eps)
        self.o_proj = Linear(width, hidden_size, axes=("embed", "heads"))
        self.heads = heads
        self.head_dim = head_dim
        self.act = act

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any]:
        (batch, length, _), f32 = x.shape, jnp.float32
        state: Any = empty_state(self, batch, x.dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        by_head = lambda part: part.reshape(batch, length, self.heads, self.head_dim).astype(f32)
        qkv = jnp.concatenate([self.q_proj(x), self.k_proj(x), self.v_proj(x)], axis=-1)
        qkv, conv = self.conv1d(qkv, documents, state.conv)
        q, k, v = map(by_head, jnp.split(activation(self.act)(qkv.astype(x.dtype)), 3, axis=-1))
        step = self.f_b_proj(self.f_a_proj(x)).astype(f32)
        step = jax.nn.softplus(step + along_last(dense(self.dt_bias).astype(f32), step))
        g = -jnp.exp(dense(self.A_log).astype(f32)) * by_head(step)
        beta = jax.nn.sigmoid(self.b_proj(x).astype(f32))
        real = documents.real[..., None]
        beta, g = jnp.where(real, beta, 0.0), jnp.where(real[..., None], g, 0.0)  # padding says nothing
        rule = delta_step if length == 1 else channel_delta_chunks
        y, ssm = rule(unit(q) * self.head_dim**-0.5, unit(k), v, g, beta, documents, state.ssm)
        y = self.o_norm(y) * jax.nn.sigmoid(by_head(self.g_b_proj(self.g_a_proj(x))))
        y = self.o_proj(y.astype(x.dtype).reshape(batch, length, -1))
        return y, None if cache is None else RecurrentState(conv, ssm, documents.last)


@slots.register(KimiDeltaAttention)
def _(layer: KimiDeltaAttention) -> dict[str, Slot]:
    def a_log(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0)).astype(dtype)

    def biases(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return step_biases(key, shape, (1e-3, 1e-1, 1e-4)).astype(dtype)

    return {"A_log": Slot("other", (None,) * 4, a_log), "dt_bias": Slot("other", (None,), biases)}


@layer_cache.register(KimiDeltaAttention)
def _(layer: KimiDeltaAttention, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(layer, batch_size, dtype)


def empty_state(layer: KimiDeltaAttention, batch_size: int, dtype: Any) -> RecurrentState:
    return before_first(layer.conv1d, batch_size, dtype, layer.heads, layer.head_dim, layer.head_dim)
