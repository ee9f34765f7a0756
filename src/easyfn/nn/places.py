"""Features in the places of tokens: what language models that read images do before their first layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .heads import input_embeddings


def embed(decoder: Any, input_ids: jax.Array) -> jax.Array:
    """What a decoder makes of ids before its layers, to be given back to it as `inputs_embeds`."""
    x = input_embeddings(decoder)(input_ids)
    scale = getattr(decoder, "embed_scale", None)
    if scale is None or getattr(decoder, "scale_inputs", False):
        return x
    return x * jnp.asarray(scale, x.dtype)


def place(x: jax.Array, features: jax.Array, here: jax.Array, count: Any = None) -> jax.Array:
    """`x` `(batch, seq, embed)` with the first `count` of `features` `(rows, embed)`, by default all, at the places `here`
    `(batch, seq)`, in reading order.

    Where there are not as many places as features nothing can be right: in a compiled function, where nobody can raise,
    the places become NaN.
    """
    flat = here.reshape(-1)
    number = jnp.cumsum(flat) - 1
    taken = jnp.take(features.astype(x.dtype), number, axis=0, mode="clip").reshape(x.shape)
    right = jnp.sum(flat) == (features.shape[0] if count is None else count)
    return jnp.where(here[..., None], jnp.where(right, taken, jnp.nan), x)


def check_places(input_ids: Any, token: int, count: Any, what: str = "image") -> None:
    """`ValueError` unless concrete ids have as many placeholders as there are features."""
    if isinstance(input_ids, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        return
    count = int(count)
    found = int((np.asarray(input_ids) == token).sum())
    if found != count:
        raise ValueError(
            f"the {what}s have {count} features and input_ids {found} places for them ({what}_token_id={token}): give "
            "what the processor made, text and pixels together"
        )
