"""Mixtures of experts: a router that chooses a few experts per token, and the experts' stacked weights."""

from __future__ import annotations

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, ragged_dot, shape_of, slots
from ..activation import activation
from ..context import Context, Runtime
from ..linear import Linear, declare
from ..parallel.experts import answer_across, by_token, expert_split


def route(logits: jax.Array, k: int, *, normalize: bool = True) -> tuple[jax.Array, jax.Array]:
    """The `k` likeliest experts of each token, softmax over all of them in float32.

    `logits`: `(..., experts)`. Returns weights `(..., k)` in float32, which add up to 1 if `normalize`, and the chosen
    experts `(..., k)`.
    """
    weights, chosen = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), k)
    if normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen


class Experts(eqx.Module):
    """Gated feed-forward layers, stacked.

    `gate_up_proj`: `(experts, 2 * mlp, embed)`; `down_proj`: `(experts, embed, mlp)`.
    Tokens are sorted by expert, so that each expert multiplies its own tokens only: see `ragged_dot`.
    """

    gate_up_proj: Weight
    down_proj: Weight
    act: str = eqx.field(static=True)

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int, act: str = "silu") -> None:
        activation(act)
        self.gate_up_proj = declare(num_experts, 2 * intermediate_size, hidden_size)
        self.down_proj = declare(num_experts, hidden_size, intermediate_size)
        self.act = act

    @property
    def num_experts(self) -> int:
        return shape_of(self.down_proj)[0]

    def rows(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """The answers to rows `x` `(rows, embed)` that are sorted by expert, `sizes[e]` of them for expert `e`."""
        gate, up = jnp.split(ragged_dot(self.gate_up_proj, x, sizes), 2, axis=-1)
        return ragged_dot(self.down_proj, activation(self.act)(gate) * up, sizes)

    def __call__(self, x: jax.Array, chosen: jax.Array, weights: jax.Array, runtime: Runtime = Runtime()) -> jax.Array:
        """The chosen experts' answers added up. `x`: `(..., embed)`; `chosen`, `weights`: `(..., k)`.

        On a mesh that splits the experts, tokens travel to theirs, as `runtime.expert_parallel` says.
        """
        if split := expert_split(x, self.num_experts, runtime):
            return answer_across(self, x, chosen, weights, split)
        shape, k = x.shape, chosen.shape[-1]
        x, chosen, weights = (a.reshape(-1, a.shape[-1]) for a in (x, chosen, weights))
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=self.num_experts)
        y = self.rows(jnp.take(x, order // k, axis=0), sizes)
        y = jnp.take(y, jnp.argsort(order), axis=0).reshape(*chosen.shape, -1)
        return jnp.sum(y.astype(jnp.float32) * weights[:, :, None], axis=1).astype(x.dtype).reshape(shape)


@slots.register(Experts)
def _(experts: Experts) -> dict[str, Slot]:
    return {
        "gate_up_proj": Slot("experts", ("experts", "mlp", "embed")),
        "down_proj": Slot("experts", ("experts", "embed", "mlp")),
    }


class SparseMoE(eqx.Module):
    """Each token through the `k` experts that its router `gate` finds likeliest (Shazeer et al., arXiv 1701.06538).

    Returns the output and, if the context wants them, the router's logits `(batch * seq, experts)`, padding included.
    In training (`context.key`) the input is multiplied with noise from `1 - jitter` to `1 + jitter`.
    """

    gate: Linear
    experts: Experts
    k: int = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    jitter: float = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        k: int,
        act: str = "silu",
        *,
        normalize: bool = True,
        jitter: float = 0.0,
    ) -> None:
        if not 0 < k <= num_experts:
            raise ValueError(f"each token goes to {k} experts, and there are {num_experts}")
        self.gate = Linear(hidden_size, num_experts, axes=(None, "embed"), role="router")
        self.experts = Experts(num_experts, hidden_size, intermediate_size, act)
        self.k = k
        self.normalize = normalize
        self.jitter = jitter

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        if self.jitter and context.key is not None:
            key = jax.random.fold_in(context.key, 17)
            x = x * jax.random.uniform(key, x.shape, x.dtype, 1.0 - self.jitter, 1.0 + self.jitter)
        logits = self.gate(x)
        weights, chosen = by_token(
            functools.partial(route, k=self.k, normalize=self.normalize), logits, context.runtime
        )
        y = self.experts(x, chosen, weights, context.runtime)
        return y, logits.reshape(-1, logits.shape[-1]) if context.wants("router_logits") else None
