"""State spaces: the selective scan of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), its convolution, its cache.

A recurrent layer has no mask to hide padding behind. So padding changes no state: its step is zero, the convolution
looks past it, and at the border of two packed documents both start anew. A document is a run of one segment.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, slots
from ..linear import along_last, declare


class SSMState(eqx.Module):
    """What a recurrent layer remembers of each row: its size does not grow with the sequence."""

    conv: jax.Array  # [batch, kernel - 1, channels], the last inputs of the convolution; zeros where there were none
    ssm: jax.Array  # [batch, heads, head_dim, state] float32
    segment_ids: jax.Array  # [batch] int32, the document that the state belongs to; 0 = none yet


class Documents(eqx.Module):
    """Which document each token continues, padding looked through.

    `index` counts the borders before a token, from 0 for the document of the cached state: tokens of one document have
    one number, and padding has the number of the token before it.
    """

    real: jax.Array  # [batch, seq] bool
    index: jax.Array  # [batch, seq] int32
    last: jax.Array  # [batch] int32, the segment id in which the row ends

    @classmethod
    def of(cls, segment_ids: jax.Array, before: jax.Array) -> Documents:
        """Of `segment_ids` `(batch, seq)` after the segments `before` `(batch,)`."""
        real = segment_ids > 0
        place = jnp.where(real, jnp.arange(1, segment_ids.shape[1] + 1, dtype=jnp.int32)[None], 0)
        place = jax.lax.cummax(place, axis=1)  # 1 + the place of the last token up to here; 0: it is in the cache
        all_segments = jnp.concatenate([before[:, None], segment_ids], axis=1)
        running = jnp.take_along_axis(all_segments, place, axis=1)
        previous = jnp.concatenate([before[:, None], running[:, :-1]], axis=1)
        return cls(real, jnp.cumsum(running != previous, axis=1, dtype=jnp.int32), running[:, -1])


class CausalConv1d(eqx.Module):
    """A depthwise causal convolution over the sequence: every channel mixes its own last `kernel` inputs."""

    weight: Weight  # [channels, 1, kernel], as torch's Conv1d stores it
    bias: Weight | None
    axes: tuple[str | None, ...] = eqx.field(static=True)

    def __init__(
        self, channels: int, kernel: int, bias: bool = True, *, axes: tuple[str | None, ...] = ("mlp", None, None)
    ):
        self.weight = declare(channels, 1, kernel)
        self.bias = declare(channels) if bias else None
        self.axes = axes

    def __call__(self, x: jax.Array, documents: Documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`x` `(batch, seq, channels)` after the inputs in `state`; returns float32 and the next state."""
        weight = dense(self.weight).astype(jnp.float32)[:, 0]

        def convolve(x: jax.Array, index: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Padding only at the end of each row."""
            width, length = state.shape[1], x.shape[1]
            inputs = jnp.concatenate([state.astype(x.dtype), x], axis=1)
            index = jnp.concatenate([jnp.zeros_like(index, shape=(x.shape[0], width)), index], axis=1)
            y = jnp.zeros(x.shape, jnp.float32)
            for j in range(width + 1):
                same = index[:, j : j + length] == index[:, width:]
                y = (
                    y
                    + jnp.where(same[..., None], inputs[:, j : j + length].astype(jnp.float32), 0.0)
                    * weight[None, None, :, j]
                )
            count = jnp.sum(real, axis=1)
            kept = count[:, None] + jnp.arange(width)[None]  # the last `width` inputs before the padding
            same = jnp.take_along_axis(index, kept, axis=1) == index[:, -1:]
            new = jnp.take_along_axis(inputs, kept[..., None], axis=1)
            return y, jnp.where(same[..., None], new, jnp.zeros_like(new))

        def packed(x: jax.Array, index: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Padding anywhere: the tokens move to the front of their rows, in their order, and back."""
            order = jnp.argsort(~real, axis=1, stable=True)
            move = lambda a, to: jnp.take_along_axis(a, to.reshape(to.shape + (1,) * (a.ndim - 2)), axis=1)
            last = jnp.where(move(real, order), move(index, order), index[:, -1:])
            y, new = convolve(move(x, order), last, real)
            return move(y, jnp.argsort(order, axis=1)), new

        x = jnp.where(documents.real[..., None], x, jnp.zeros_like(x))
        arguments = (x, documents.index, documents.real)
        if x.shape[1] == 1:
            y, new = convolve(*arguments)
        else:
            before = jnp.any(documents.real[:, 1:] & ~documents.real[:, :-1])  # a token after padding
            y, new = jax.lax.cond(before, packed, convolve, *arguments)
        if self.bias is not None:
            y = y + along_last(dense(self.bias).astype(jnp.float32), y)
        return y, new.astype(state.dtype)


@slots.register(CausalConv1d)
def _(conv: CausalConv1d) -> dict[str, Slot]:
    def uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        bound = shape[-1] ** -0.5  # torch's own default for a convolution
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound).astype(dtype)

    return {"weight": Slot("conv", conv.axes, uniform), "bias": Slot("bias", conv.axes[:1], "zeros")}


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
    """`weight * normalise(x * silu(gate))`, each of `groups` equal parts of the last axis normalised on its own."""

    weight: Weight
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5) -> None:
        if dim % groups:
            raise ValueError(f"GatedRMSNorm: {dim} features do not divide into {groups} groups")
        self.weight = declare(dim)
        self.groups = groups
        self.eps = eps

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
        parts = h.reshape(*h.shape[:-1], self.groups, -1)
        parts = parts * jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + self.eps)
        return (parts.reshape(h.shape) * along_last(dense(self.weight).astype(jnp.float32), h)).astype(gate.dtype)


@slots.register(GatedRMSNorm)
def _(norm: GatedRMSNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "ones")}
