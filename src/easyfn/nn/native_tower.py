"""An image tower for images of other shapes than its own: learned positions by where a patch lies between the edges, padding
masked (Dehghani et al. 2023, arXiv 2307.06304)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import dense
from .context import Context
from .conv import Conv
from .linear import Embedding
from .norm import LayerNorm
from .output import Output
from .towers import run_tower, tower_blocks
from .vision import channels_last, image_context, pair


class NativeEmbeddings(eqx.Module):
    """Patches with learned positions on a grid of `side` by `side`, in whose buckets the patches of any image fall."""

    patch_embedding: Conv
    position_embedding: Embedding
    side: int = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        patch, size = pair(config.patch_size), config.hidden_size
        self.side = pair(config.image_size)[0] // patch[0]
        self.patch_embedding = Conv(config.num_channels, size, patch, True, stride=patch)
        self.position_embedding = Embedding(self.side**2, size, axes=(None, "embed"))

    def __call__(self, pixel_values: jax.Array, seen: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Patches `(images, patches, embed)`, and which of them are real `(images, patches)`."""
        x = self.patch_embedding(channels_last(pixel_values, dense(self.patch_embedding.weight)))
        if seen is None:
            seen = jnp.ones(x.shape[:3], bool)
        y, x_ = (self.buckets(jnp.sum(jnp.take(seen, 0, axis=3 - axis), axis=1), x.shape[axis]) for axis in (1, 2))
        places = jnp.where(seen, y[:, :, None] * self.side + x_[:, None, :], 0).reshape(x.shape[0], -1)
        return x.reshape(x.shape[0], -1, x.shape[-1]) + self.position_embedding(places), seen.reshape(x.shape[0], -1)

    def buckets(self, counts: jax.Array, size: int) -> jax.Array:
        """The bucket `(images, size)` of each of `size` places, `counts` `(images,)` of which the image has."""
        bounds = np.arange(1 / self.side, 1.0, 1 / self.side).astype(np.float32)
        step = 1.0 / jnp.maximum(counts, 1).astype(jnp.float32)
        share = jnp.minimum(jnp.arange(size, dtype=jnp.float32)[None] * step[:, None], np.float32(1.0 - 1e-6))
        return jnp.searchsorted(bounds, share, side="right").astype(jnp.int32)


class NativeTower(eqx.Module):
    """Pixels to hidden states, all normed; `patch_attention_mask` `(images, rows, columns)` says which patches are real."""

    embeddings: NativeEmbeddings
    layers: tuple[Any, ...]
    post_layernorm: LayerNorm
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        self.embeddings = NativeEmbeddings(config)
        self.layers = tower_blocks(config)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        pixel_values: jax.Array,
        patch_attention_mask: jax.Array | None = None,
    ) -> Output:
        x, seen = self.embeddings(pixel_values, patch_attention_mask)
        context = image_context(context)
        if patch_attention_mask is not None:
            context = context.replace(
                segment_ids=seen.astype(jnp.int32), slots=jnp.arange(seen.shape[1], dtype=jnp.int32)
            )
        x, trace = run_tower(self.layers, x, context)
        return Output(last_hidden_state=self.post_layernorm(x), **trace)
