"""Activation functions under the names that configs use (transformers `activations.py`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10, 10),
    "hardswish": jax.nn.hard_silu,
    "laplace": lambda x: 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "mish": jax.nn.mish,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of a config's `hidden_act`; an unknown name is an error that lists the known ones."""
    if name in ("prelu", "xielu"):
        raise ValueError(f"activation {name!r} has weights of its own, so it is a layer and not a function of x alone")
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@dataclasses.dataclass(frozen=True)
class ClampedGate:
    """`g * sigmoid(alpha * g) * (u + shift)` where `g = min(gate, limit)` and `u` is `up` between `-limit` and `limit`.

    gpt-oss has `ClampedGate(7.0, 1.702, 1.0)`.
    """

    limit: float
    alpha: float = 1.0
    shift: float = 0.0

    def __call__(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + self.shift)


def gated(act: str | ClampedGate, gate: jax.Array, up: jax.Array) -> jax.Array:
    """What goes into the last layer of a gated MLP: `act(gate) * up` of a name, `act(gate, up)` of a function of both."""
    return activation(act)(gate) * up if isinstance(act, str) else act(gate, up)
