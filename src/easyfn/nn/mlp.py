"""Feed-forward layers."""

from __future__ import annotations

import equinox as eqx
import jax

from .activation import activation
from .context import Context
from .linear import Linear


class GatedMLP(eqx.Module):
    """`down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202).

    Takes the context that `Block` gives to what may stand in its place, and needs none.
    """

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)

    def __init__(self, hidden_size: int, intermediate_size: int, act: str = "silu", *, bias: bool = False) -> None:
        activation(act)  # an unknown name fails here, not in the first forward pass
        self.gate_proj = Linear(hidden_size, intermediate_size, bias, axes=("mlp", "embed"))
        self.up_proj = Linear(hidden_size, intermediate_size, bias, axes=("mlp", "embed"))
        self.down_proj = Linear(intermediate_size, hidden_size, bias, axes=("embed", "mlp"))
        self.act = act

    def __call__(self, x: jax.Array, context: Context | None = None) -> jax.Array:
        return self.down_proj(activation(self.act)(self.gate_proj(x)) * self.up_proj(x))
