"""The ids of the tokens, for layers that look something up by them."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp


class TokenIds(eqx.Module):
    """The ids themselves, for every layer: what a [`easyfn.nn.Decoder`][] is given as `per_layer`. `reads` says in an error what
    the model does with them."""

    layers: int = eqx.field(static=True)
    reads: str = eqx.field(static=True)

    def __call__(self, input_ids: jax.Array | None, x: jax.Array) -> jax.Array:
        if input_ids is None:
            raise ValueError(f"this model {self.reads} by the ids of tokens: give input_ids, not inputs_embeds alone")
        return jnp.broadcast_to(input_ids[:, None].astype(jnp.int32), (x.shape[0], self.layers, x.shape[1]))
