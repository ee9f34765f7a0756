"""Pixtral's image tower: images of any size, whose height and width turn the queries and keys of their patches."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import dense
from .context import Context
from .conv import Conv
from .fold import fold
from .grid_places import patches
from .mlp import GatedMLP
from .norm import RMSNorm
from .output import Output
from .vision import EncoderBlock, SelfAttention, channels_last, image_context, pair


class PixtralTower(eqx.Module):
    """Images `(images, channels, height, width)`, each of its own size in the upper left corner, to one row of their patches
    `(1, patches, embed)`: those of the first image by rows, then those of the next, as transformers has them.

    `image_sizes` `(images, 2)` are their heights and widths, by default those of `pixel_values`. As there are shapes for the
    largest of images, what lies behind the last patch is to be left.
    """

    patch_conv: Conv
    ln_pre: RMSNorm
    layers: tuple[EncoderBlock, ...]
    config: Any = eqx.field(static=True)

    def __init__(self, c: Any) -> None:
        if c.hidden_size // c.num_attention_heads % 4:
            raise ValueError(f"pixtral: heads of {c.hidden_size // c.num_attention_heads} have no quarters to turn")
        patch, none = pair(c.patch_size), (False, False, False, False)

        def block() -> EncoderBlock:
            attention = SelfAttention(c.hidden_size, c.num_attention_heads, bias=none, dropout=c.attention_dropout)
            mlp = GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)
            return EncoderBlock(c.hidden_size, attention, mlp, 1e-5, norm=RMSNorm)

        self.patch_conv = Conv(c.num_channels, c.hidden_size, patch, stride=patch, bias=False)
        self.ln_pre = RMSNorm(c.hidden_size, 1e-5)
        self.layers = tuple(block() for _ in range(c.num_hidden_layers))
        self.config = c

    def __call__(
        self, context: Context, cache: Any = None, *, pixel_values: jax.Array, image_sizes: Any = None
    ) -> Output:
        c = self.config
        x = self.patch_conv(channels_last(pixel_values, dense(self.patch_conv.weight)))
        images, down, across = x.shape[:3]
        count = down * across
        y, x_ = np.arange(count) // across, np.arange(count) % across
        context = image_context(context).replace(rope={"image": self._turns(y, x_)})
        image: Any = np.arange(images * count) // count
        inside: Any = np.arange(images * count) % count
        if image_sizes is not None:
            grid = jnp.asarray(image_sizes, jnp.int32) // jnp.asarray(pair(c.patch_size), jnp.int32)[None]
            seen = (y[None] < grid[:, :1]) & (x_[None] < grid[:, 1:])
            places = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[None], seen.shape)
            context = context.replace(segment_ids=seen.astype(jnp.int32), slots=places)
            at = patches(jnp.pad(grid, ((0, 0), (1, 0)), constant_values=1), images * count)
            image, inside = at.image, jnp.minimum(at.y * across + at.x, count - 1)
        in_order = lambda x: x[image, inside][None]
        x = self.ln_pre(x.reshape(images, count, -1))
        x, _, trace = fold(self.layers, x, context)
        if context.wants("hidden_states"):
            trace["hidden_states"] = tuple(in_order(h) for h in (*trace["hidden_states"], x))
        if context.wants("attentions"):  # of all patches, which read those of their own image
            same = image[:, None] == image[None, :]
            row = lambda w: jnp.moveaxis(w, 1, 2)[image, inside][:, :, inside] * same[:, None]
            trace["attentions"] = tuple(jnp.moveaxis(row(w), 1, 0)[None] for w in trace["attentions"])
        return Output(last_hidden_state=in_order(x), **trace)

    def _turns(self, y: np.ndarray, x: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines `(1, patches, head_dim / 2)`: the even frequencies turn with the height, the odd with the width."""
        c = self.config
        dim = c.hidden_size // c.num_attention_heads
        inv = 1.0 / float(c.rope_parameters["rope_theta"]) ** (np.arange(0, dim, 2) / dim)
        angles = np.concatenate([y[:, None] * inv[None, 0::2], x[:, None] * inv[None, 1::2]], axis=-1)
        turns = jnp.asarray(angles[None], jnp.float32)
        return jnp.cos(turns), jnp.sin(turns)
