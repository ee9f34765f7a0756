"""The real-gated linear recurrent unit of Griffin (De et al. 2024, arXiv 2402.19427)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, shape_of, slots
from ..activation import activation
from ..cache.cache import layer_cache
from ..context import Context
from ..linear import Linear, along_last, declare
from .conv import CausalConv1d, before_first
from .state import Documents, RecurrentState

_STEEPEST = 1000.0  # the largest slope of the square root that a gradient sees: at decays of one it has none


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


@_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * jax.lax.rsqrt(jnp.maximum(4.0 * x, _STEEPEST**-2))


class RGLRU(eqx.Module):
    """`s = a * s + sqrt(1 - a^2) * (gate * x)`, where the decay `a` of each channel and the gate come of `x`, by blocks.

    All in float32; the first token of a document enters whole, and padding leaves the state as it is.
    """

    recurrent_param: Weight  # [width]
    input_gate_weight: Weight  # [blocks, block, block]
    input_gate_bias: Weight  # [blocks, block]
    recurrent_gate_weight: Weight
    recurrent_gate_bias: Weight

    def __init__(self, width: int, blocks: int) -> None:
        if width % blocks:
            raise ValueError(f"RGLRU: {width} channels do not divide into {blocks} blocks")
        block = width // blocks
        self.recurrent_param = declare(width)
        self.input_gate_weight = declare(blocks, block, block)
        self.input_gate_bias = declare(blocks, block)
        self.recurrent_gate_weight = declare(blocks, block, block)
        self.recurrent_gate_bias = declare(blocks, block)

    def __call__(self, x: jax.Array, documents: Documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`x` `(batch, seq, width)` after the state `(batch, width)`: the states of all tokens, and the last."""
        x = x.astype(jnp.float32)
        gate = self._gate(x, self.input_gate_weight, self.input_gate_bias)
        strength = self._gate(x, self.recurrent_gate_weight, self.recurrent_gate_bias)
        log_decay = -8.0 * strength * along_last(jax.nn.softplus(dense(self.recurrent_param).astype(jnp.float32)), x)
        begins = (jnp.diff(documents.index, axis=1, prepend=0) > 0)[..., None]
        decay = jnp.where(begins, 0.0, jnp.exp(log_decay))
        share = jnp.where(begins, 1.0, _sqrt(1.0 - jnp.exp(2.0 * log_decay)))
        real = documents.real[..., None]
        decay, new = jnp.where(real, decay, 1.0), jnp.where(real, x * gate * share, 0.0)

        def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return left[0] * right[0], left[1] * right[0] + right[1]

        kept, added = (decay, new) if x.shape[1] == 1 else jax.lax.associative_scan(join, (decay, new), axis=1)
        states = kept * state[:, None] + added
        return states, states[:, -1]

    def _gate(self, x: jax.Array, weight: Weight, bias: Weight) -> jax.Array:
        w, b = dense(weight).astype(jnp.float32), dense(bias).astype(jnp.float32)
        blocks = x.reshape(*x.shape[:2], *b.shape)
        return jax.nn.sigmoid(jnp.einsum("bshi,hij->bshj", blocks, w) + b[None, None]).reshape(x.shape)


@slots.register(RGLRU)
def _(layer: RGLRU) -> dict[str, Slot]:
    def decays(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        square = jax.random.uniform(key, shape, jnp.float32, 0.9**2, 0.999**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(square))).astype(dtype)  # such that decays are from 0.9 to 0.999

    matrix, bias = Slot("other", ("heads", None, None)), Slot("bias", ("heads", None), "zeros")
    return {
        "recurrent_param": Slot("other", (None,), decays),
        "input_gate_weight": matrix,
        "input_gate_bias": bias,
        "recurrent_gate_weight": matrix,
        "recurrent_gate_bias": bias,
    }


class GriffinMixer(eqx.Module):
    """Two branches: one through a short convolution and the recurrent unit, one through an activation that gates it."""

    linear_y: Linear
    linear_x: Linear
    linear_out: Linear
    conv_1d: CausalConv1d
    rg_lru: RGLRU
    act: str = eqx.field(static=True)

    def __init__(self, hidden_size: int, width: int, blocks: int, kernel: int, act: str) -> None:
        activation(act)
        self.linear_y = Linear(hidden_size, width, True, axes=("mlp", "embed"))
        self.linear_x = Linear(hidden_size, width, True, axes=("mlp", "embed"))
        self.linear_out = Linear(width, hidden_size, True, axes=("embed", "mlp"))
        self.conv_1d = CausalConv1d(width, kernel, True)
        self.rg_lru = RGLRU(width, blocks)
        self.act = act

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any]:
        state: Any = empty_state(self, x.shape[0], x.dtype) if cache is None else cache
        documents = Documents.of(context.segment_ids, state.segment_ids)
        gate = activation(self.act)(self.linear_y(x))
        h, conv = self.conv_1d(self.linear_x(x), documents, state.conv)
        h, ssm = self.rg_lru(h, documents, state.ssm)
        y = self.linear_out(h.astype(x.dtype) * gate)
        return y, None if cache is None else RecurrentState(conv, ssm, documents.last)


@layer_cache.register(GriffinMixer)
def _(layer: GriffinMixer, batch_size: int, max_length: int, dtype: Any) -> RecurrentState:
    return empty_state(layer, batch_size, dtype)


def empty_state(layer: GriffinMixer, batch_size: int, dtype: Any) -> RecurrentState:
    return before_first(layer.conv_1d, batch_size, dtype, shape_of(layer.conv_1d.weight)[-3])
