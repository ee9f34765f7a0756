"""The mixer of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), as the hybrids have it too."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, slots
from ..activation import activation
from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear, along_last, declare
from .conv import CausalConv1d, before_first
from .ssd import scan_chunks, scan_step
from .state import Documents, RecurrentState, step_biases


class Mamba2Mixer(eqx.Module):
    """One projection in, a short convolution, the selective scan, a gated norm, one projection out.

    - `norm` is called with the scan's output and the gate, as a [`easyfn.nn.GatedRMSNorm`][]; without one the output is
      multiplied by `silu(gate)`.
    - `limit`: time steps are held between these two. `steps`: initial time steps lie between the first two, at least the
      third; `None` begins with biases of one.
    - `scales` multiply what `in_proj` makes: gate, x, B, C and time steps (Falcon-H1); `None` for none.
    """

    in_proj: Linear  # to gate, convolution channels (x, B, C) and one time step per head
    conv1d: CausalConv1d
    A_log: Weight
    D: Weight
    dt_bias: Weight
    norm: Any
    out_proj: Linear
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    state: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    act: str = eqx.field(static=True)
    limit: tuple[float, float] = eqx.field(static=True)
    steps: tuple[float, float, float] | None = eqx.field(static=True)
    scales: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        *,
        heads: int,
        head_dim: int,
        state: int,
        groups: int,
        kernel: int,
        chunk: int,
        bias: bool = False,
        out_bias: bool | None = None,
        conv_bias: bool = True,
        act: str = "silu",
        norm: Any = None,
        limit: tuple[float, float] = (0.0, math.inf),
        steps: tuple[float, float, float] | None = None,
        scales: tuple[float, ...] | None = None,
    ) -> None:
        if heads % groups:
            raise ValueError(f"{heads} heads of a state space do not divide into {groups} groups")
        activation(act)
        inner, shared = heads * head_dim, groups * state
        self.in_proj = Linear(hidden_size, 2 * inner + 2 * shared + heads, bias, axes=("mlp", "embed"))
        self.conv1d = CausalConv1d(inner + 2 * shared, kernel, conv_bias)
        self.A_log = declare(heads)
        self.D = declare(heads)
        self.dt_bias = declare(heads)
        self.norm = norm
        self.out_proj = Linear(inner, hidden_size, bias if out_bias is None else out_bias, axes=("embed", "mlp"))
        self.heads = heads
        self.head_dim = head_dim
        self.state = state
        self.groups = groups
        self.chunk = chunk
        self.act = act
        self.limit = (float(limit[0]), float(limit[1]))
        self.steps = steps
        self.scales = scales

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, RecurrentState | None]:
        (batch, length, _), f32 = x.shape, jnp.float32
        state: Any = empty_state(self, batch, x.dtype) if cache is None else cache
        inner, shared = self.heads * self.head_dim, self.groups * self.state
        documents = Documents.of(context.segment_ids, state.segment_ids)

        projected = self.in_proj(x)
        if self.scales is not None:
            widths = (inner, inner, shared, shared, self.heads)
            factors = jnp.concatenate([jnp.full((n,), s, x.dtype) for n, s in zip(widths, self.scales, strict=True)])
            projected = projected * along_last(factors, projected)
        gate, xbc, dt = jnp.split(projected, (inner, 2 * inner + 2 * shared), axis=-1)
        xbc, conv = self.conv1d(xbc, documents, state.conv)
        xbc = activation(self.act)(xbc)
        u, b, c = jnp.split(xbc, (inner, inner + shared), axis=-1)
        u = u.reshape(batch, length, self.heads, self.head_dim)
        b, c = (m.reshape(batch, length, self.groups, self.state) for m in (b, c))
        dt = jax.nn.softplus(dt.astype(f32) + along_last(dense(self.dt_bias).astype(f32), dt))
        dt = jnp.where(documents.real[..., None], jnp.clip(dt, *self.limit), 0.0)  # padding takes no time
        a = -jnp.exp(dense(self.A_log).astype(f32))
        if length == 1:
            y, ssm = scan_step(u, dt, a, b, c, documents, state.ssm)
        else:
            y, ssm = scan_chunks(u, dt, a, b, c, documents, state.ssm, chunk=self.chunk)
        y = (y + u * dense(self.D).astype(f32)[None, None, :, None]).reshape(batch, length, inner)
        if self.norm is None:
            y = (y * jax.nn.silu(gate.astype(f32))).astype(x.dtype)
        else:
            y = self.norm(y, gate)
        return self.out_proj(y), None if cache is None else RecurrentState(conv, ssm, documents.last)


@slots.register(Mamba2Mixer)
def _(mixer: Mamba2Mixer) -> dict[str, Slot]:
    def a_log(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.log(jnp.arange(1, mixer.heads + 1, dtype=jnp.float32)), shape).astype(dtype)

    def dt_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        assert mixer.steps is not None
        return step_biases(key, shape, mixer.steps).astype(dtype)

    return {
        "A_log": Slot("other", (None,), a_log),
        "D": Slot("other", (None,), "ones"),
        "dt_bias": Slot("other", (None,), "ones" if mixer.steps is None else dt_bias),
    }


@layer_cache.register(Mamba2Mixer)
def _(mixer: Mamba2Mixer, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(mixer, batch_size, dtype)


def empty_state(mixer: Mamba2Mixer, batch_size: int, dtype: Any) -> RecurrentState:
    return before_first(mixer.conv1d, batch_size, dtype, mixer.heads, mixer.head_dim, mixer.state)
