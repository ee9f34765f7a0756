"""A router that norms and scales what it reads (Gemma 4)."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, slots
from ..context import Runtime
from ..linear import Linear, along_last, declare
from ..norm import RMSNorm
from ..parallel.experts import by_token
from .router import Routing, route


class ScaledRouter(eqx.Module):
    """A router that reads its input normed and times `scale`, and whose answers count as much as `per_expert_scale` says. Its
    logits are probabilities, as transformers returns them."""

    norm: RMSNorm
    proj: Linear
    scale: Weight
    per_expert_scale: Weight
    k: int = eqx.field(static=True)

    def __init__(self, hidden_size: int, num_experts: int, k: int, eps: float) -> None:
        if not 0 < k <= num_experts:
            raise ValueError(f"each token goes to {k} experts, and there are {num_experts}")
        self.norm = RMSNorm(hidden_size, eps, affine=False)
        self.proj = Linear(hidden_size, num_experts, axes=(None, "embed"), role="router")
        self.scale = declare(hidden_size)
        self.per_expert_scale = declare(num_experts)
        self.k = k

    def __call__(self, x: jax.Array, runtime: Runtime = Runtime()) -> Routing:
        h = self.norm(x)
        h = h * along_last(dense(self.scale).astype(h.dtype), h) * jnp.asarray(h.shape[-1] ** -0.5, h.dtype)
        logits = self.proj(h)

        def choose(logits: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
            weights, chosen = route(logits, self.k)
            return weights * jnp.take(scale, chosen).astype(weights.dtype), chosen

        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        return Routing(probabilities, *by_token(choose, logits, runtime, dense(self.per_expert_scale)))


@slots.register(ScaledRouter)
def _(router: ScaledRouter) -> dict[str, Slot]:
    return {"scale": Slot("norm", ("norm",), "ones"), "per_expert_scale": Slot("norm", (None,), "ones")}
