"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464): a state that forgets, and corrects what it says of a key.

`S = exp(g) S`, then `S = S + k (beta (v - S^T k))^T`, and a query reads `S^T q`. In a chunk of the sequence the corrections
of all its tokens are one triangular system, so a prompt takes matrix products and a short scan over chunks.
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
from .state import Documents, RecurrentState, step_biases


def delta_step(
    q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, beta: jax.Array, documents: Documents, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[`delta_chunks`][easyfn.nn.delta_chunks] for a single token: the recurrence as it is written. `g` may have a decay for
    each channel of the keys, `(batch, 1, heads, key_dim)`."""
    q, k, v, g, beta = (x[:, 0] for x in (q, k, v, g, beta))
    decay = (g if g.ndim == 3 else g[..., None])[..., None]
    state = state * jnp.where(documents.index[..., None, None] == 0, jnp.exp(decay), 0.0)
    told = jnp.einsum("bhkv,bhk->bhv", state, k)
    state = state + k[..., None] * ((v - told) * beta[..., None])[:, :, None]
    return jnp.einsum("bhkv,bhk->bhv", state, q)[:, None], state


def delta_chunks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    documents: Documents,
    state: jax.Array,
    *,
    chunk: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """The gated delta rule over a sequence, in parallel inside of chunks.

    All float32: `q`, `k` `(batch, seq, heads, key_dim)`; `v` `(batch, seq, heads, value_dim)`; `g`, the log of the decay, and
    `beta` `(batch, seq, heads)`, both zero at padding; `state` `(batch, heads, key_dim, value_dim)`. Returns the outputs,
    shaped as `v`, and the last state.
    """
    batch, length, heads, _ = q.shape
    chunk = min(chunk, length)
    pad = -length % chunk
    count = (length + pad) // chunk

    def cut(x: jax.Array) -> jax.Array:
        """`(batch, seq, heads, ...)` to `(batch, heads, chunks, chunk, ...)`."""
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, chunk, *x.shape[2:]), 3, 1)

    q, k, v, g, beta = map(cut, (q, k, v, g, beta))
    doc = jnp.pad(documents.index, ((0, 0), (0, pad)), mode="edge").reshape(batch, 1, count, chunk)
    before = jnp.concatenate([jnp.zeros_like(doc[:, :, :1, 0]), doc[:, :, :-1, -1]], axis=2)  # of the incoming state
    end = doc[..., -1]

    total = jnp.cumsum(g, axis=-1)  # log of the decay since the chunk began
    same = (doc[..., :, None] == doc[..., None, :]) & jnp.tril(jnp.ones((chunk, chunk), bool))[None, None, None]
    decay = jnp.exp(jnp.where(same, total[..., :, None] - total[..., None, :], -jnp.inf))
    reach = jnp.exp(jnp.where(doc == before[..., None], total, -jnp.inf))[..., None]  # from the incoming state
    left = jnp.exp(jnp.where(doc == end[..., None], total[..., -1:] - total, -jnp.inf))[
        ..., None
    ]  # to the outgoing one
    kept = jnp.exp(jnp.where(before == end, total[..., -1], -jnp.inf))[..., None, None]

    # Row i of the corrections: beta_i (v_i - what the state says of k_i, corrected by the rows before).
    weighted = k * beta[..., None]
    system = jnp.tril(jnp.einsum("bhnik,bhnjk->bhnij", weighted, k) * decay, -1)
    wanted = jnp.concatenate([v * beta[..., None], weighted * reach], axis=-1)
    solved = jax.scipy.linalg.solve_triangular(
        system + jnp.eye(chunk)[None, None, None], wanted, lower=True, unit_diagonal=True
    )
    new, read = jnp.split(solved, [v.shape[-1]], axis=-1)
    within = jnp.einsum("bhnik,bhnjk->bhnij", q, k) * decay

    def pass_on(state: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        new, read, within, q, k, kept = part
        new = new - read @ state
        return state * kept + jnp.swapaxes(k, -1, -2) @ new, q @ state + within @ new

    parts = [jnp.moveaxis(x, 2, 0) for x in (new, read, within, q * reach, k * left, kept)]
    state, out = jax.lax.scan(pass_on, state, tuple(parts))
    out = jnp.moveaxis(out, (0, 2), (1, 3)).reshape(batch, count * chunk, heads, -1)
    return out[:, :length], state


def unit(x: jax.Array) -> jax.Array:
    """`x` with a length of one along its last axis."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class GatedDeltaNet(eqx.Module):
    """Linear attention by the gated delta rule: a short convolution before it, a norm and a gate on each head after it.

    - `projections`: `"two"`, `in_proj_qkvz` and `in_proj_ba`, with the rows of a key head beside each other (Qwen3-Next);
      `"four"` (Qwen3.5); or `"all"`, queries, keys and values apart too (OLMo Hybrid).
    - Each key head serves `value_heads / key_heads` value heads.
    - `beta` is the largest step of a correction: up to 2, states may change their sign.
    - `gate` is the activation of the gate behind the norm.
    - Decays begin with `A` between the two of `decays`, and time steps as `steps` says, or with biases of one.
    """

    q_proj: Linear | None
    k_proj: Linear | None
    v_proj: Linear | None

    in_proj_qkvz: Linear | None
    in_proj_ba: Linear | None
    in_proj_qkv: Linear | None
    in_proj_z: Linear | None
    in_proj_b: Linear | None
    in_proj_a: Linear | None
    conv1d: CausalConv1d
    A_log: Weight
    dt_bias: Weight
    norm: RMSNorm
    out_proj: Linear
    key_heads: int = eqx.field(static=True)
    value_heads: int = eqx.field(static=True)
    key_dim: int = eqx.field(static=True)
    value_dim: int = eqx.field(static=True)
    act: str = eqx.field(static=True)
    gate: str = eqx.field(static=True)
    beta: float = eqx.field(static=True)
    decays: tuple[float, float] = eqx.field(static=True)
    steps: tuple[float, float, float] | None = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        *,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        kernel: int = 4,
        act: str = "silu",
        gate: str = "silu",
        eps: float = 1e-6,
        projections: str = "two",
        beta: float = 1.0,
        decays: tuple[float, float] = (0.01, 16.0),
        steps: tuple[float, float, float] | None = None,
    ) -> None:
        if projections not in ("two", "four", "all"):
            raise ValueError(f"GatedDeltaNet: projections={projections!r} is 'two', 'four' or 'all'")
        if value_heads % key_heads:
            raise ValueError(f"linear_num_value_heads={value_heads} is no multiple of linear_num_key_heads={key_heads}")
        activation(act), activation(gate)
        keys, values = key_heads * key_dim, value_heads * value_dim
        into = lambda size, here: Linear(hidden_size, size, axes=("heads", "embed")) if here else None
        two, apart = projections == "two", projections == "all"
        self.q_proj, self.k_proj, self.v_proj = into(keys, apart), into(keys, apart), into(values, apart)
        self.in_proj_qkvz = into(2 * keys + 2 * values, two)
        self.in_proj_ba = into(2 * value_heads, two)
        self.in_proj_qkv = into(2 * keys + values, projections == "four")
        self.in_proj_z = into(values, not two)
        self.in_proj_b = into(value_heads, not two)
        self.in_proj_a = into(value_heads, not two)
        self.conv1d = CausalConv1d(2 * keys + values, kernel, False, axes=("heads", None, None))
        self.A_log = declare(value_heads)
        self.dt_bias = declare(value_heads)
        self.norm = RMSNorm(value_dim, eps)
        self.out_proj = Linear(values, hidden_size, axes=("embed", "heads"))
        self.key_heads = key_heads
        self.value_heads = value_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.act = act
        self.gate = gate
        self.beta = beta
        self.decays = decays
        self.steps = steps

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any]:
        (batch, length, _), f32 = x.shape, jnp.float32
        state: Any = empty_state(self, batch, x.dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        qkv, z, b, a = self._projected(x)
        qkv, conv = self.conv1d(qkv, documents, state.conv)
        keys = self.key_heads * self.key_dim
        parts = jnp.split(activation(self.act)(qkv.astype(x.dtype)).astype(f32), [keys, 2 * keys], axis=-1)
        q, k, v = (part.reshape(batch, length, h, -1) for part, h in zip(parts, self._heads(), strict=True))
        q, k = (jnp.repeat(unit(part), self.value_heads // self.key_heads, axis=2) for part in (q, k))
        beta = jax.nn.sigmoid(b.astype(f32)) * self.beta
        step = jax.nn.softplus(a.astype(f32) + along_last(dense(self.dt_bias).astype(f32), a))
        g = -along_last(jnp.exp(dense(self.A_log).astype(f32)), a) * step
        beta, g = (jnp.where(documents.real[..., None], part, 0.0) for part in (beta, g))  # padding says nothing
        rule = delta_step if length == 1 else delta_chunks
        y, ssm = rule(q * self.key_dim**-0.5, k, v, g, beta, documents, state.ssm)
        y = self.norm(y.astype(x.dtype)).astype(f32) * activation(self.gate)(z.reshape(y.shape).astype(f32))
        y = self.out_proj(y.astype(x.dtype).reshape(batch, length, -1))
        return y, None if cache is None else RecurrentState(conv, ssm, documents.last)

    def _heads(self) -> tuple[int, int, int]:
        return self.key_heads, self.key_heads, self.value_heads

    def _projected(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Queries, keys and values `(batch, seq, channels)`, the gate, and the logits of `beta` and of the time step."""
        if self.in_proj_qkvz is None or self.in_proj_ba is None:
            assert self.in_proj_z is not None and self.in_proj_b is not None and self.in_proj_a is not None
            parts = (self.q_proj, self.k_proj, self.v_proj) if self.in_proj_qkv is None else (self.in_proj_qkv,)
            qkv = jnp.concatenate([part(x) for part in parts if part is not None], axis=-1)
            return qkv, self.in_proj_z(x), self.in_proj_b(x), self.in_proj_a(x)
        by_key = lambda m: m.reshape(*x.shape[:2], self.key_heads, -1)
        group = self.value_heads // self.key_heads
        sizes = [self.key_dim, self.key_dim, group * self.value_dim]
        at = [sum(sizes[: n + 1]) for n in range(3)]
        flat = lambda m: m.reshape(*x.shape[:2], -1)
        q, k, v, z = map(flat, jnp.split(by_key(self.in_proj_qkvz(x)), at, axis=-1))
        b, a = map(flat, jnp.split(by_key(self.in_proj_ba(x)), [group], axis=-1))
        return jnp.concatenate([q, k, v], axis=-1), z, b, a


@slots.register(GatedDeltaNet)
def _(layer: GatedDeltaNet) -> dict[str, Slot]:
    def a_log(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        low, high = layer.decays
        return jnp.log(jax.random.uniform(key, shape, jnp.float32, max(low, 1e-6), high)).astype(dtype)

    def biases(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        assert layer.steps is not None
        return step_biases(key, shape, layer.steps).astype(dtype)

    return {
        "A_log": Slot("other", (None,), a_log),
        "dt_bias": Slot("other", (None,), "ones" if layer.steps is None else biases),
    }


@layer_cache.register(GatedDeltaNet)
def _(layer: GatedDeltaNet, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(layer, batch_size, dtype)


def empty_state(layer: GatedDeltaNet, batch_size: int, dtype: Any) -> RecurrentState:
    return before_first(layer.conv1d, batch_size, dtype, layer.value_heads, layer.key_dim, layer.value_dim)
