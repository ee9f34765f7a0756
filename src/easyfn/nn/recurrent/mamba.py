"""The mixer of Mamba (Gu and Dao 2023, arXiv 2312.00752): a selective scan with a state for every channel."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, affine, dense, shape_of, slots
from ..activation import activation
from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear, declare
from .conv import CausalConv1d, before_first
from .state import Documents, RecurrentState, step_biases


def selective_scan(
    x: jax.Array,
    dt: jax.Array,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    documents: Documents,
    state: jax.Array,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """`s = exp(dt * a) * s + dt * x * b`, `y = s . c`, with a decay of its own for every channel and entry of the state.

    All float32: `x` `(batch, seq, channels)`; `dt` the same, zero at padding; `a` `(channels, state)`, negative; `b`, `c`
    `(batch, seq, state)`; `state` `(batch, channels, state)`. Returns `y`, shaped as `x`, and the last state. Steps are
    combined in a tree inside of a chunk, whose states are the only ones in memory, and chunks pass a state on.
    """
    batch, length, _ = x.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    begins = jnp.diff(documents.index, axis=1, prepend=0) > 0  # tokens that do not see the state before them

    def cut(m: jax.Array) -> jax.Array:
        m = jnp.pad(m, ((0, 0), (0, pad)) + ((0, 0),) * (m.ndim - 2))
        return jnp.moveaxis(m.reshape(batch, -1, chunk, *m.shape[2:]), 1, 0)

    def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    @jax.checkpoint
    def one(state: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, dt, b, c, begins = part
        decay = jnp.where(begins[..., None, None], 0.0, jnp.exp(dt[..., None] * a[None, None]))
        new = (dt * x)[..., None] * b[:, :, None, :]
        if chunk == 1:
            kept, added = decay, new
        else:
            kept, added = jax.lax.associative_scan(join, (decay, new), axis=1)
        states = kept * state[:, None] + added
        return states[:, -1], jnp.einsum("blis,bls->bli", states, c)

    parts = tuple(map(cut, (x, dt, b, c, begins)))
    if length == 1:
        state, y = one(state, tuple(part[0] for part in parts))
        return y, state
    state, y = jax.lax.scan(one, state, parts)
    return jnp.moveaxis(y, 0, 1).reshape(batch, length + pad, -1)[:, :length], state


class TimeStep(eqx.Module):
    """A linear layer to the logits of time steps, whose bias begins with steps as `steps` says (see `step_biases`)."""

    weight: Weight
    bias: Weight
    steps: tuple[float, float, float] = eqx.field(static=True)

    def __init__(self, rank: int, channels: int, steps: tuple[float, float, float]) -> None:
        self.weight = declare(channels, rank)
        self.bias = declare(channels)
        self.steps = steps

    def __call__(self, x: jax.Array) -> jax.Array:
        return affine(self.weight, x, self.bias)


@slots.register(TimeStep)
def _(layer: TimeStep) -> dict[str, Slot]:
    def weight(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        bound = shape[-1] ** -0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound).astype(dtype)

    def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return step_biases(key, shape, layer.steps).astype(dtype)

    return {"weight": Slot("linear", ("mlp", None), weight), "bias": Slot("bias", ("mlp",), bias)}


class MambaMixer(eqx.Module):
    """A gated short convolution, then the selective scan, whose step, input and output vectors come of the input.

    `norms` `(time step, B, C)` stand between their projections (Jamba, Falcon-Mamba). `steps`: initial time steps lie between
    the first two, at least the third.
    """

    in_proj: Linear
    conv1d: CausalConv1d
    x_proj: Linear
    dt_proj: TimeStep
    A_log: Weight
    D: Weight
    out_proj: Linear
    dt_layernorm: Any
    b_layernorm: Any
    c_layernorm: Any
    act: str = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        *,
        inner: int,
        state: int,
        rank: int,
        kernel: int,
        bias: bool = False,
        conv_bias: bool = True,
        act: str = "silu",
        norms: tuple[Any, Any, Any] = (None, None, None),
        steps: tuple[float, float, float] = (0.001, 0.1, 1e-4),
    ) -> None:
        activation(act)
        self.in_proj = Linear(hidden_size, 2 * inner, bias, axes=("mlp", "embed"))
        self.conv1d = CausalConv1d(inner, kernel, conv_bias)
        self.x_proj = Linear(inner, rank + 2 * state, axes=(None, "mlp"))
        self.dt_proj = TimeStep(rank, inner, steps)
        self.A_log = declare(inner, state)
        self.D = declare(inner)
        self.out_proj = Linear(inner, hidden_size, bias, axes=("embed", "mlp"))
        self.dt_layernorm, self.b_layernorm, self.c_layernorm = norms
        self.act = act

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, RecurrentState | None]:
        f32, dtype = jnp.float32, x.dtype
        state: Any = empty_state(self, x.shape[0], dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        x, gate = jnp.split(self.in_proj(x), 2, axis=-1)
        x, conv = self.conv1d(x, documents, state.conv)
        x = activation(self.act)(x).astype(dtype)
        size = shape_of(self.A_log)[1]
        rank = shape_of(self.dt_proj.weight)[1]
        dt, b, c = jnp.split(self.x_proj(x), [rank, rank + size], axis=-1)
        norms = (self.dt_layernorm, self.b_layernorm, self.c_layernorm)
        dt, b, c = (part if norm is None else norm(part) for part, norm in zip((dt, b, c), norms, strict=True))
        dt = jax.nn.softplus(self.dt_proj(dt).astype(f32))
        dt = jnp.where(documents.real[..., None], dt, 0.0)  # padding takes no time
        a = -jnp.exp(dense(self.A_log).astype(f32))
        x = x.astype(f32)
        y, ssm = selective_scan(x, dt, a, b.astype(f32), c.astype(f32), documents, state.ssm)
        y = (y + x * dense(self.D).astype(f32)[None, None]) * jax.nn.silu(gate.astype(f32))
        return self.out_proj(y.astype(dtype)), None if cache is None else RecurrentState(conv, ssm, documents.last)


@slots.register(MambaMixer)
def _(mixer: MambaMixer) -> dict[str, Slot]:
    def a_log(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape).astype(dtype)

    return {"A_log": Slot("other", ("mlp", None), a_log), "D": Slot("other", ("mlp",), "ones")}


@layer_cache.register(MambaMixer)
def _(mixer: MambaMixer, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(mixer, batch_size, dtype)


def empty_state(mixer: MambaMixer, batch_size: int, dtype: Any) -> RecurrentState:
    return before_first(mixer.conv1d, batch_size, dtype, *shape_of(mixer.A_log)[-2:])
