"""A router that knows the experts of a token by its id (Roller et al. 2021, arXiv 2106.04426; DeepSeek-V4's first layers)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, affine, slots, take
from ..context import Runtime
from ..linear import declare
from .router import SCORES, Routing


class HashRouter(eqx.Module):
    """Which experts a token goes to says the table `tid2eid` `(vocabulary, k)`, a buffer; how much the answer of each counts, a
    score of what it reads, among those chosen.

    Called with the ids `(...)` of the tokens `x` `(..., embed)`, as a [`easyfn.nn.SparseMoE`][] that is `hashed` does. It has no
    logits to balance.
    """

    weight: Weight
    tid2eid: Any
    score: str = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(
        self, vocab_size: int, hidden_size: int, num_experts: int, k: int, *, score: str, scale: float = 1.0
    ) -> None:
        if not 0 < k <= num_experts:
            raise ValueError(f"each token goes to {k} experts, and there are {num_experts}")
        if score not in SCORES:
            raise ValueError(f"a router has no scores {score!r}; known: {', '.join(SCORES)}")
        self.weight = declare(num_experts, hidden_size)
        self.tid2eid = jax.ShapeDtypeStruct((vocab_size, k), jnp.int32)
        self.score = score
        self.scale = scale

    def __call__(self, x: jax.Array, runtime: Runtime, ids: jax.Array) -> Routing:
        chosen = take(self.tid2eid, ids)
        scores = SCORES[self.score](affine(self.weight, x, None).astype(jnp.float32))
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
        return Routing(None, weights * self.scale, chosen)


@slots.register(HashRouter)
def _(router: HashRouter) -> dict[str, Slot]:
    return {"weight": Slot("router", (None, "embed")), "tid2eid": Slot("buffer", (None, None), "zeros")}
