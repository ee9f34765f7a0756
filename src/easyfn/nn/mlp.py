"""Feed-forward layers. All take the context that a block gives to what may stand in their place."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .activation import ClampedGate, activation, gated
from .context import Context, dropout
from .linear import Linear


class GatedMLP(eqx.Module):
    """`down(act(gate(x)) * up(x))` (Shazeer 2020, arXiv 2002.05202), with dropout on what comes out where a family has it.

    `act` is the name of an activation, or a function of gate and up as [`easyfn.nn.ClampedGate`][] is.
    """

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    act: str | ClampedGate = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        act: str | ClampedGate = "silu",
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if isinstance(act, str):
            activation(act)  # an unknown name fails here, not in the first forward pass
        self.gate_proj = Linear(hidden_size, intermediate_size, bias, axes=("mlp", "embed"))
        self.up_proj = Linear(hidden_size, intermediate_size, bias, axes=("mlp", "embed"))
        self.down_proj = Linear(intermediate_size, hidden_size, bias, axes=("embed", "mlp"))
        self.act = act
        self.dropout = dropout

    def __call__(self, x: Float[Array, "*rows in_"], context: Context | None = None) -> Float[Array, "*rows out"]:
        y = self.down_proj(gated(self.act, self.gate_proj(x), self.up_proj(x)))
        return y if context is None else dropout(y, self.dropout, context, 4)


class FusedGatedMLP(eqx.Module):
    """A gated MLP whose gate (the first half of the rows) and up come of one `gate_up_proj` (Phi-3, GLM).

    `up_first`: its rows are those of up, and then of the gate (GTE). What goes into the last layer is dropped in training at
    the rate `inner_dropout` (ModernBERT). `bias` is of both layers, or `(of the first, of the last)`.
    """

    gate_up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)
    up_first: bool = eqx.field(static=True)
    inner_dropout: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        act: str = "silu",
        *,
        bias: bool | tuple[bool, bool] = False,
        up_first: bool = False,
        inner_dropout: float = 0.0,
    ) -> None:
        activation(act)
        first, last = bias if isinstance(bias, tuple) else (bias, bias)
        self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, first, axes=("mlp", "embed"))
        self.down_proj = Linear(intermediate_size, hidden_size, last, axes=("embed", "mlp"))
        self.act = act
        self.up_first = up_first
        self.inner_dropout = inner_dropout

    def __call__(self, x: Float[Array, "*rows in_"], context: Context | None = None) -> Float[Array, "*rows out"]:
        gate, up = jnp.split(self.gate_up_proj(x), 2, axis=-1)
        gate, up = (up, gate) if self.up_first else (gate, up)
        h = activation(self.act)(gate) * up
        return self.down_proj(h if context is None else dropout(h, self.inner_dropout, context, 5))


class MLP(eqx.Module):
    """`down(act(up(x)))`, with dropout on what comes out where a family has it."""

    up_proj: Linear
    down_proj: Linear
    act: str = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self, hidden_size: int, intermediate_size: int, act: str = "gelu", *, bias: bool = False, dropout: float = 0.0
    ) -> None:
        activation(act)
        self.up_proj = Linear(hidden_size, intermediate_size, bias, axes=("mlp", "embed"))
        self.down_proj = Linear(intermediate_size, hidden_size, bias, axes=("embed", "mlp"))
        self.act = act
        self.dropout = dropout

    def __call__(self, x: Float[Array, "*rows in_"], context: Context) -> Float[Array, "*rows out"]:
        return dropout(self.down_proj(activation(self.act)(self.up_proj(x))), self.dropout, context, 4)
