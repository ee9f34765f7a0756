"""An image tower that reads patches: images of any shape, each as many patches as fit, with positions resampled for its own grid
(Tschannen et al. 2025, arXiv 2502.14786)."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import dense
from .context import Context
from .linear import Embedding, Linear
from .norm import LayerNorm
from .output import Output
from .towers import ProbeHead, run_tower, tower_blocks
from .vision import image_context, pair


class PatchEmbeddings(eqx.Module):
    """Patches through a linear layer, and learned positions on a square grid that is stretched over every image."""

    patch_embedding: Linear
    position_embedding: Embedding
    side: int = eqx.field(static=True)

    def __init__(self, c: Any) -> None:
        patch = pair(c.patch_size)
        self.side = int(c.num_patches**0.5)
        if self.side**2 != c.num_patches:
            raise ValueError(f"num_patches={c.num_patches} must be a square: the grid on which positions are learned")
        self.patch_embedding = Linear(c.num_channels * patch[0] * patch[1], c.hidden_size, True, axes=("embed", None))
        self.position_embedding = Embedding(c.num_patches, c.hidden_size, axes=(None, "embed"))

    def __call__(self, pixel_values: jax.Array, spatial_shapes: Any) -> jax.Array:
        """`(images, patches, embed)`; a place that the image does not fill has the position of its first patch."""
        x = self.patch_embedding(pixel_values.astype(dense(self.patch_embedding.weight).dtype))
        shapes = grids(spatial_shapes, x.shape[:2])
        place = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
        place = jnp.where(place < shapes[:, :1] * shapes[:, 1:], place, 0)
        rows = self._weights(place // shapes[:, 1:], shapes[:, :1])
        columns = self._weights(place % shapes[:, 1:], shapes[:, 1:])
        table = dense(self.position_embedding.weight)
        grid = table.reshape(self.side, self.side, -1).astype(jnp.float32)
        exact = jax.lax.Precision.HIGHEST
        found = jnp.einsum("nph,npw,hwe->npe", rows, columns, grid, precision=exact)
        return x + found.astype(table.dtype)

    def _weights(self, place: jax.Array, size: jax.Array) -> jax.Array:
        """How much each of `side` learned places says of `place` among `size`: torch's bilinear resampling, antialiased."""
        scale = self.side / size.astype(jnp.float32)
        center = (place + 0.5) * scale - 0.5
        apart = jnp.abs(jnp.arange(self.side, dtype=jnp.float32)[None, None] - center[..., None])
        weights = jnp.maximum(1 - apart / jnp.maximum(scale, 1)[..., None], 0)
        return weights / jnp.sum(weights, axis=-1, keepdims=True)


def grids(spatial_shapes: Any, shape: tuple[int, ...]) -> jax.Array:
    """`spatial_shapes` as `(images, 2)`; concrete ones that images of `shape` do not fill are a `ValueError`."""
    found = jnp.asarray(spatial_shapes).astype(jnp.int32)
    if found.shape != (shape[0], 2):
        raise ValueError(f"spatial_shapes must be {(shape[0], 2)}, rows and columns of patches, not {found.shape}")
    if not isinstance(found, jax.core.Tracer):
        held = np.asarray(found)
        if held.min() < 1 or np.any(held[:, 0] * held[:, 1] > shape[1]):
            raise ValueError(
                f"spatial_shapes {held.tolist()} do not fit the {shape[1]} patches of each of pixel_values"
            )
    return found


class PatchTower(eqx.Module):
    """Patches to hidden states, all normed, and through the probe `head`, if there is one, to one vector for each image.

    `pixel_values` `(images, patches, channels * patch * patch)`, `spatial_shapes` `(images, 2)` the rows and columns of each
    (by default a square), and `pixel_attention_mask` `(images, patches)` which of them are real.
    """

    embeddings: PatchEmbeddings
    layers: tuple[Any, ...]
    post_layernorm: LayerNorm
    head: ProbeHead | None
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        self.embeddings = PatchEmbeddings(config)
        self.layers = tower_blocks(config)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = ProbeHead(config) if config.vision_use_head else None
        self.config = config

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        pixel_values: jax.Array,
        spatial_shapes: Any = None,
        pixel_attention_mask: Any = None,
    ) -> Output:
        if spatial_shapes is None:
            side = math.isqrt(pixel_values.shape[1])
            if side**2 != pixel_values.shape[1]:
                raise ValueError("patches that are no square need spatial_shapes (images, 2), rows and columns of each")
            spatial_shapes = np.full((pixel_values.shape[0], 2), side)
        x = self.embeddings(pixel_values, spatial_shapes)
        seen = None if pixel_attention_mask is None else jnp.asarray(pixel_attention_mask)
        if seen is not None and seen.shape != x.shape[:2]:
            raise ValueError(f"pixel_attention_mask must be {x.shape[:2]}, one number for each patch, not {seen.shape}")
        context = image_context(context)
        if seen is not None:
            places = jnp.arange(x.shape[1], dtype=jnp.int32)
            context = context.replace(segment_ids=(seen != 0).astype(jnp.int32), slots=places)
        x, trace = run_tower(self.layers, x, context)
        x = self.post_layernorm(x)
        pooled = None if self.head is None else self.head(x, seen)
        return Output(last_hidden_state=x, pooler_output=pooled, **trace)
