"""Experts: feed-forward layers whose weights are stacked, each of which answers its own tokens only."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, ragged_dot, shape_of, slots
from ..activation import ClampedGate, activation, gated
from ..context import Runtime
from ..linear import declare
from ..parallel.experts import answer_across, expert_split


class Experts(eqx.Module):
    """Gated feed-forward layers, stacked.

    `gate_up_proj`: `(experts, 2 * mlp, embed)`, the gate's rows first, or (`interleaved`) row by row beside those of `up`;
    `down_proj`: `(experts, embed, mlp)`. With `bias`, `gate_up_proj_bias` `(experts, 2 * mlp)` and `down_proj_bias`
    `(experts, embed)`. `act` is the name of an activation, `act(gate) * up`, or a function of `(gate, up)` that is equal to
    itself when made again, as [`easyfn.nn.ClampedGate`][] is. `weigh_inputs`: a router's weights multiply what an expert is
    given, not what it answers (Llama 4).

    Tokens are sorted by expert, so that each expert multiplies its own tokens only: see `ragged_dot`.
    """

    gate_up_proj: Weight
    gate_up_proj_bias: Weight | None
    down_proj: Weight
    down_proj_bias: Weight | None
    act: str | ClampedGate = eqx.field(static=True)
    interleaved: bool = eqx.field(static=True)
    weigh_inputs: bool = eqx.field(static=True)

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        act: str | ClampedGate = "silu",
        *,
        bias: bool = False,
        interleaved: bool = False,
        weigh_inputs: bool = False,
    ) -> None:
        if isinstance(act, str):
            activation(act)
        self.gate_up_proj = declare(num_experts, 2 * intermediate_size, hidden_size)
        self.gate_up_proj_bias = declare(num_experts, 2 * intermediate_size) if bias else None
        self.down_proj = declare(num_experts, hidden_size, intermediate_size)
        self.down_proj_bias = declare(num_experts, hidden_size) if bias else None
        self.act = act
        self.interleaved = interleaved
        self.weigh_inputs = weigh_inputs

    @property
    def num_experts(self) -> int:
        return shape_of(self.down_proj)[0]

    def rows(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """The answers to rows `x` `(rows, embed)` that are sorted by expert, `sizes[e]` of them for expert `e`."""
        both = _with_bias(ragged_dot(self.gate_up_proj, x, sizes), self.gate_up_proj_bias, sizes)
        gate, up = (both[:, 0::2], both[:, 1::2]) if self.interleaved else jnp.split(both, 2, axis=-1)
        return _with_bias(ragged_dot(self.down_proj, gated(self.act, gate, up), sizes), self.down_proj_bias, sizes)

    def __call__(self, x: jax.Array, chosen: jax.Array, weights: jax.Array, runtime: Runtime = Runtime()) -> jax.Array:
        """The chosen experts' answers added up. `x`: `(..., embed)`; `chosen`, `weights`: `(..., k)`.

        On a mesh that splits the experts, tokens travel to theirs, as `runtime.expert_parallel` says.
        """
        if self.weigh_inputs:
            each = (x[..., None, :].astype(jnp.float32) * weights[..., None]).astype(x.dtype)  # [..., tokens, k, embed]
            alone = lambda a: a.reshape(*a.shape[:-3], -1, a.shape[-1])  # each answer asked for as a token of its own
            y = answers(self, alone(each), alone(chosen[..., None]), alone(jnp.ones_like(weights)[..., None]), runtime)
            return jnp.sum(y.reshape(each.shape).astype(jnp.float32), axis=-2).astype(x.dtype)
        return answers(self, x, chosen, weights, runtime)


def answers(experts: Any, x: jax.Array, chosen: jax.Array, weights: jax.Array, runtime: Runtime) -> jax.Array:
    """What the chosen `experts` say, added up: they know their `num_experts`, and answer `rows` sorted by expert."""
    if split := expert_split(x, experts.num_experts, runtime):
        return answer_across(experts, x, chosen, weights, split)
    shape, k = x.shape, chosen.shape[-1]
    x, chosen, weights = (a.reshape(-1, a.shape[-1]) for a in (x, chosen, weights))
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    sizes = jnp.bincount(chosen.reshape(-1), length=experts.num_experts)
    y = experts.rows(jnp.take(x, order // k, axis=0), sizes)
    y = jnp.take(y, jnp.argsort(order), axis=0).reshape(*chosen.shape, -1)
    return jnp.sum(y.astype(jnp.float32) * weights[:, :, None], axis=1).astype(x.dtype).reshape(shape)


def _with_bias(y: jax.Array, bias: Weight | None, sizes: jax.Array) -> jax.Array:
    if bias is None:
        return y
    # Rows after the last expert's, where other devices' tokens are, take any bias: their answers are not used.
    owner = jnp.repeat(jnp.arange(sizes.shape[0]), sizes, total_repeat_length=y.shape[0])
    return y + jnp.take(dense(bias), owner, axis=0).astype(y.dtype)


@slots.register(Experts)
def _(experts: Experts) -> dict[str, Slot]:
    return {
        "gate_up_proj": Slot("experts", ("experts", "mlp", "embed")),
        "gate_up_proj_bias": Slot("bias", ("experts", "mlp"), "zeros"),
        "down_proj": Slot("experts", ("experts", "embed", "mlp")),
        "down_proj_bias": Slot("bias", ("experts", "embed"), "zeros"),
    }
