"""Experts without a gate."""

from __future__ import annotations

import equinox as eqx
import jax

from ...core.weight import Slot, Weight, ragged_dot, shape_of, slots
from ..activation import activation
from ..context import Runtime
from ..linear import declare
from .experts import answers


class PlainExperts(eqx.Module):
    """Feed-forward layers `down(act(up(x)))`, stacked: `up_proj` `(experts, mlp, embed)`, `down_proj` `(experts, embed, mlp)`.

    Called as [`easyfn.nn.Experts`][].
    """

    up_proj: Weight
    down_proj: Weight
    act: str = eqx.field(static=True)

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, act: str = "relu2") -> None:
        activation(act)
        self.up_proj = declare(num_experts, intermediate_size, hidden_size)
        self.down_proj = declare(num_experts, hidden_size, intermediate_size)
        self.act = act

    @property
    def num_experts(self) -> int:
        return shape_of(self.down_proj)[0]

    def rows(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """The answers to rows `x` `(rows, embed)` that are sorted by expert, `sizes[e]` of them for expert `e`."""
        return ragged_dot(self.down_proj, activation(self.act)(ragged_dot(self.up_proj, x, sizes)), sizes)

    def __call__(self, x: jax.Array, chosen: jax.Array, weights: jax.Array, runtime: Runtime = Runtime()) -> jax.Array:
        """The chosen experts' answers added up. `x`: `(..., embed)`; `chosen`, `weights`: `(..., k)`."""
        return answers(self, x, chosen, weights, runtime)


@slots.register(PlainExperts)
def _(experts: PlainExperts) -> dict[str, Slot]:
    return {
        "up_proj": Slot("experts", ("experts", "mlp", "embed")),
        "down_proj": Slot("experts", ("experts", "embed", "mlp")),
    }
