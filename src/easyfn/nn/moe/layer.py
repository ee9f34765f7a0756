"""A mixture of experts: a router, the experts it chooses, and maybe one that every token goes to."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..context import Context
from ..linear import Linear


class SparseMoE(eqx.Module):
    """Each token through the experts that its router `gate` chooses (Shazeer et al. 2017, arXiv 1701.06538).

    `gate(x, runtime)` answers a `Routing`, as [`easyfn.nn.Router`][] does. `shared_experts` answers every token beside them
    (DeepSeekMoE, arXiv 2401.06066), multiplied by the sigmoid of `shared_expert_gate` where there is one (Qwen2-MoE).
    `scale` multiplies the sum. Experts of the router with numbers behind those of `experts` cost nothing: what they answer is
    what they are given (`zero_experts`, LongCat Flash). A router that is `hashed` is given the ids of the tokens, too, which a
    [`easyfn.nn.Decoder`][] brings with `per_layer` (DeepSeek-V4). In training (`context.key`) the input is multiplied with
    noise from `1 - jitter` to `1 + jitter`.

    Returns the output and, if the context wants them, the router's logits `(batch * seq, experts)`, padding included.

    ```python
    import jax, easyfn as ef
    layer = ef.nn.SparseMoE(ef.nn.Router(16, 4, 2), ef.nn.Experts(4, 16, 32), shared_experts=ef.nn.GatedMLP(16, 32))
    assert "gate.weight" in ef.params(ef.init(layer, key=jax.random.key(0)))
    ```
    """

    gate: Any
    experts: Any
    shared_experts: Any
    shared_expert_gate: Linear | None
    jitter: float = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    zero_experts: bool = eqx.field(static=True)
    hashed: bool = eqx.field(static=True)

    def __init__(
        self,
        gate: Any,
        experts: Any,
        *,
        shared_experts: Any = None,
        shared_expert_gate: Linear | None = None,
        jitter: float = 0.0,
        scale: float = 1.0,
        zero_experts: bool = False,
        hashed: bool = False,
    ) -> None:
        self.gate = gate
        self.experts = experts
        self.shared_experts = shared_experts
        self.shared_expert_gate = shared_expert_gate
        self.jitter = jitter
        self.scale = scale
        self.zero_experts = zero_experts
        self.hashed = hashed

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, jax.Array | None]:
        shared = None if self.shared_experts is None else self.shared_experts(x, context)
        if shared is not None and self.shared_expert_gate is not None:
            shared = jax.nn.sigmoid(self.shared_expert_gate(x)) * shared
        if self.jitter and context.key is not None:
            key = jax.random.fold_in(context.key, 17)
            x = x * jax.random.uniform(key, x.shape, x.dtype, 1.0 - self.jitter, 1.0 + self.jitter)
        ids = (context.by_layer,) if self.hashed else ()
        routing = self.gate(x, context.runtime, *ids)
        chosen, weights = routing.chosen, routing.weights
        if self.zero_experts:
            computes = chosen < self.experts.num_experts
            kept = x.astype(jnp.float32) * jnp.sum(jnp.where(computes, 0.0, weights), axis=-1, keepdims=True)
            # One past the last: nothing is computed for it, and what stands in its place counts nothing.
            chosen, weights = jnp.where(computes, chosen, self.experts.num_experts), jnp.where(computes, weights, 0.0)
        y = self.experts(x, chosen, weights, context.runtime)
        y = y + kept.astype(y.dtype) if self.zero_experts else y
        y = y if shared is None else y + shared
        y = y if self.scale == 1.0 else y * jnp.asarray(self.scale, y.dtype)
        logits = routing.logits if context.wants("router_logits") else None
        return y, None if logits is None else logits.reshape(-1, logits.shape[-1])
