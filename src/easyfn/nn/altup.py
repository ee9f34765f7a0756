"""`AltUp`: several streams of which a layer reads one, and the guess and the correction of the others (Gemma 3n)."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, dot, slots
from .context import Context
from .linear import Linear, declare
from .norm import RMSNorm


class AltUp(eqx.Module):
    """Alternating updates (Baykal et al. 2023, arXiv 2301.13310) of streams `(batch, seq, streams, embed)`.

    A layer reads the stream `active` of what `predict` guesses of all of them, and `correct` takes what it says of that one
    to the others. In training coefficients are held between `-clip` and `clip`.
    """

    correct_output_scale: Weight
    correction_coefs: Linear
    prediction_coefs: Linear
    modality_router: Linear
    router_norm: RMSNorm
    active: int = eqx.field(static=True)
    clip: float | None = eqx.field(static=True)

    def __init__(self, hidden_size: int, streams: int, active: int, eps: float, clip: float | None = None) -> None:
        self.correct_output_scale = declare(hidden_size)
        self.correction_coefs = Linear(streams, streams)
        self.prediction_coefs = Linear(streams, streams**2)
        self.modality_router = Linear(hidden_size, streams, axes=(None, "embed"))
        self.router_norm = RMSNorm(hidden_size, eps)
        self.active = active
        self.clip = clip

    def predict(self, x: jax.Array, context: Context) -> jax.Array:
        streams = x.shape[2]
        mixed = self._coefs(self.prediction_coefs, x[:, :, self.active], context)
        mixed = mixed.reshape(*x.shape[:2], streams, streams)  # [batch, seq, to, from]
        return jnp.einsum("bsij,bsje->bsie", mixed, x, preferred_element_type=jnp.float32).astype(x.dtype) + x

    def correct(self, guess: jax.Array, said: jax.Array, context: Context) -> jax.Array:
        amount = self._coefs(self.correction_coefs, said, context) + jnp.ones((), said.dtype)
        return guess + amount[..., None] * (said - guess[:, :, self.active])[:, :, None]

    def _coefs(self, linear: Linear, x: jax.Array, context: Context) -> jax.Array:
        routed = self.modality_router(self.router_norm(x) * jnp.asarray(1.0 / x.shape[-1], x.dtype))
        routed = jnp.tanh(routed.astype(jnp.float32)).astype(x.dtype)
        if self.clip is None or context.key is None:
            return linear(routed)
        return dot(jnp.clip(dense(linear.weight), -self.clip, self.clip).astype(x.dtype), routed)


@slots.register(AltUp)
def _(layer: AltUp) -> dict[str, Slot]:
    return {"correct_output_scale": Slot("other", ("norm",), "zeros")}
