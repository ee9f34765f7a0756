"""State spaces: the selective scan of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060) and its norm."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, slots
from ..linear import along_last, declare
from .state import Documents


def scan_step(
    x: jax.Array, dt: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array, documents: Documents, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[`scan_chunks`][easyfn.nn.scan_chunks] for a single token: the recurrence as it is written in the paper."""
    heads, groups = x.shape[2], b.shape[2]
    b, c = (jnp.repeat(m[:, 0], heads // groups, axis=1) for m in (b, c))  # [batch, heads, state]
    decay = jnp.where((documents.index == 0), jnp.exp(dt[:, 0] * a[None]), 0.0)
    new = (x[:, 0] * dt[:, 0, :, None])[..., None] * b[:, :, None, :]
    state = state * decay[..., None, None] + new
    return jnp.sum(state * c[:, :, None, :], axis=-1)[:, None], state


def scan_chunks(
    x: jax.Array,
    dt: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    documents: Documents,
    state: jax.Array,
    *,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """The selective scan `s = exp(dt * a) * s + dt * x b^T`, `y = s c`, in parallel over chunks of the sequence.

    All float32: `x` `(batch, seq, heads, head_dim)`; `dt` `(batch, seq, heads)`, zero at padding; `a` `(heads,)`,
    negative; `b`, `c` `(batch, seq, groups, state)`; `state` `(batch, heads, head_dim, state)`. Returns `y`, shaped as
    `x`, and the last state. Inside a chunk it is attention with a decaying causal mask; chunks pass a state on.
    """
    batch, length, heads, dim = x.shape
    groups, size = b.shape[2], b.shape[3]
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def cut(m: jax.Array, *shape: int) -> jax.Array:
        m = jnp.pad(m, ((0, 0), (0, pad)) + ((0, 0),) * (m.ndim - 2), mode="constant")
        return m.reshape(batch, count, chunk, *shape)

    # letters: n chunk, q and s place in a chunk, g group, h head of the group, d head_dim, k state
    step = cut(dt, groups, heads // groups)
    u = cut(x, groups, heads // groups, dim) * step[..., None]
    b, c = cut(b, groups, size), cut(c, groups, size)
    total = jnp.cumsum(step * a.reshape(1, 1, 1, groups, -1), axis=2)  # log of the decay since the chunk began
    doc = jnp.pad(documents.index, ((0, 0), (0, pad)), mode="edge").reshape(batch, count, chunk)
    before = jnp.concatenate([jnp.zeros_like(doc[:, :1, 0]), doc[:, :-1, -1]], axis=1)  # document of the incoming state
    end = doc[:, :, -1]

    seen = (doc[:, :, :, None] == doc[:, :, None, :]) & jnp.tril(jnp.ones((chunk, chunk), bool))[None, None]
    apart = total[:, :, :, None] - total[:, :, None]  # [b, n, q, s, g, h]
    weight = jnp.exp(jnp.where(seen[..., None, None], apart, -jnp.inf))
    weight = weight * jnp.einsum("bnqgk,bnsgk->bnqsg", c, b)[..., None]
    y = jnp.einsum("bnqsgh,bnsghd->bnqghd", weight, u)

    left = jnp.exp(jnp.where((doc == end[..., None])[..., None, None], total[:, :, -1:] - total, -jnp.inf))
    added = jnp.einsum("bnsgk,bnsghd->bnghdk", b, u * left[..., None])
    kept = jnp.exp(jnp.where((before == end)[..., None, None], total[:, :, -1], -jnp.inf))

    def pass_on(state: jax.Array, chunk_: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, added = chunk_
        return state * kept[..., None, None] + added, state

    first = state.reshape(batch, groups, heads // groups, dim, size)
    last, incoming = jax.lax.scan(pass_on, first, (jnp.moveaxis(kept, 1, 0), jnp.moveaxis(added, 1, 0)))
    reach = jnp.exp(jnp.where((doc == before[..., None])[..., None, None], total, -jnp.inf))
    y = y + jnp.einsum("bnqgk,nbghdk->bnqghd", c, incoming) * reach[..., None]
    return y.reshape(batch, count * chunk, heads, dim)[:, :length], last.reshape(state.shape)


class GatedRMSNorm(eqx.Module):
    """`weight * normalise(x * silu(gate))`, each of `groups` equal parts of the last axis normalised on its own.

    `norm_first`: `weight * normalise(x) * silu(gate)`.
    """

    weight: Weight
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    norm_first: bool = eqx.field(static=True)

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5, *, norm_first: bool = False) -> None:
        if dim % groups:
            raise ValueError(f"GatedRMSNorm: {dim} features do not divide into {groups} groups")
        self.weight = declare(dim)
        self.groups = groups
        self.eps = eps
        self.norm_first = norm_first

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        h, opening = x.astype(jnp.float32), jax.nn.silu(gate.astype(jnp.float32))
        h = h if self.norm_first else h * opening
        parts = h.reshape(*h.shape[:-1], self.groups, -1)
        parts = parts * jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + self.eps)
        h = parts.reshape(h.shape) * along_last(dense(self.weight).astype(jnp.float32), h)
        return (h * opening if self.norm_first else h).astype(gate.dtype)


@slots.register(GatedRMSNorm)
def _(norm: GatedRMSNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "ones")}
