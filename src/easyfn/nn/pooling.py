"""Pooling: one hidden state per row of many tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .context import Context
from .linear import pad_token


def at_token(x: jax.Array, index: jax.Array) -> jax.Array:
    """`x[i, index[i]]` for every row: `(batch, embed)` from `(batch, seq, embed)`."""
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def _last(seen: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(seen, jnp.arange(seen.shape[1])[None], 0), axis=1)


def first_token(x: Float[Array, "batch seq embed"], context: Context) -> Float[Array, "batch embed"]:
    """The hidden state `(batch, embed)` of each row's first token that is no padding."""
    return at_token(x, jnp.argmax(context.segment_ids > 0, axis=1))


def last_token(x: Float[Array, "batch seq embed"], context: Context) -> Float[Array, "batch embed"]:
    """The hidden state `(batch, embed)` of each row's last token that is no padding."""
    return at_token(x, _last(context.segment_ids > 0))


def last_token_by_id(x: jax.Array, context: Context, ids: jax.Array | None, config: Any) -> jax.Array:
    """As `last_token`, where the config's `pad_token_id` is padding too, as transformers' decoders classify: they look
    at the ids and not at the mask, so a row needs no mask, and an end token that is also the padding does not count."""
    pad = pad_token(config)
    seen = context.segment_ids > 0
    return at_token(x, _last(seen if ids is None or pad is None else seen & (ids != pad)))


POOLINGS = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pool(x: Float[Array, "batch seq embed"], context: Context, mode: str) -> Float[Array, "batch embed"]:
    """One vector per row, `(batch, embed)` in float32, from `(batch, seq, embed)`; padding takes no part.

    The modes are those of sentence-transformers' `Pooling`.
    """
    if mode == "cls":
        return first_token(x, context).astype(jnp.float32)
    if mode == "lasttoken":
        return last_token(x, context).astype(jnp.float32)
    x = x.astype(jnp.float32)
    seen = (context.segment_ids > 0)[..., None]
    if mode == "max":
        return jnp.max(jnp.where(seen, x, -1e9), axis=1)
    weight = seen.astype(jnp.float32)
    if mode == "weightedmean":
        weight = weight * jnp.cumsum(weight, axis=1)  # 1, 2, 3, ... over the tokens
    total = jnp.sum(x * weight, axis=1)
    count = jnp.maximum(jnp.sum(weight, axis=1), 1e-9)
    return total / (jnp.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)
