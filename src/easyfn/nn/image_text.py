"""Language models that read images: features of a tower take the places of placeholder tokens."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .context import Context
from .output import Output
from .packing import Frames, PatchBlocks, patches_seen
from .places import check_places, embed, place
from .vision import image_context, pair

BLOCKS = ("images", "prefix")
SIZES = ("image_sizes", "spatial_shapes", "batch_num_images")  # of which each kind of images has its own


def image_blocks(token_type_ids: jax.Array, kind: str) -> jax.Array:
    """Which tokens `(batch, seq)` see each other both ways, for `Context.blocks`.

    `images`: every run of tokens of type 1 is a block (Gemma 3). `prefix`: all tokens of type 0 are one (PaliGemma).
    """
    if kind == "prefix":
        return (token_type_ids == 0).astype(jnp.int32)
    return runs(token_type_ids == 1)


def by_column(name: str, value: jax.Array, context: Context) -> jax.Array:
    """A number for each token of the pass, `(batch, seq)`; `ValueError` for another shape."""
    if value.shape != context.segment_ids.shape:
        raise ValueError(
            f"{name} has shape {value.shape} and the tokens {context.segment_ids.shape}: one number for each"
        )
    return value


def runs(inside: jax.Array) -> jax.Array:
    """The number from 1 of the run of true entries that each is in, by row `(batch, seq)`, and 0 outside."""
    begins = inside & ~jnp.pad(inside[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(inside, jnp.cumsum(begins, axis=1, dtype=jnp.int32), 0)


class ImageText(eqx.Module):
    """A tower, a projector and a decoder, as LLaVA joins them.

    `feature_layers` are the hidden states of the tower that are projected, side by side (`None`: its last one, normed);
    `drop_first` leaves out its class token. `blocks` says which tokens see each other both ways, by their
    `token_type_ids`: those of an image (`"images"`), or all before the answer (`"prefix"`). `first_position` is that of a
    row's first token. `pack` puts the features of images in several pieces, or of several sizes, in order, before the projector
    reads them where it says `first`; without one every image has all of its own. `frames` does so for videos.
    """

    vision_tower: Any
    multi_modal_projector: Any
    pack: Any
    frames: Frames | None
    language_model: Any
    config: Any = eqx.field(static=True)
    image_token: int = eqx.field(static=True)
    feature_layers: tuple[int, ...] | None = eqx.field(static=True)
    drop_first: bool = eqx.field(static=True)
    blocks: str | None = eqx.field(static=True)
    first_position: int = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        vision: Any,
        projector: Any,
        text: Any,
        *,
        image_token: int,
        feature_layers: tuple[int, ...] | None = None,
        drop_first: bool = False,
        blocks: str | None = None,
        first_position: int = 0,
        pack: Any = None,
        frames: Frames | None = None,
    ) -> None:
        if blocks not in (None, *BLOCKS):
            raise ValueError(f"ImageText: blocks={blocks!r} is None or one of {', '.join(BLOCKS)}")
        self.vision_tower, self.multi_modal_projector, self.language_model = vision, projector, text
        self.config = config
        self.image_token = image_token
        self.feature_layers = feature_layers
        self.drop_first = drop_first
        self.blocks = blocks
        self.first_position = first_position
        self.pack, self.frames = pack, frames

    def states(
        self, context: Context, pixel_values: jax.Array, pixel_attention_mask: Any = None, sizes: Any = None
    ) -> jax.Array:
        """What the tower says of images, or of their pieces: `(pieces, tokens, embed)`. `sizes` are `image_sizes`,
        `spatial_shapes`, ..., by their names."""
        wanted = {"hidden_states"} if self.feature_layers is not None else set()
        context = image_context(context).replace(outputs=frozenset(wanted))
        if isinstance(self.pack, PatchBlocks):  # what is in patches already
            more = {**(sizes or {}), "pixel_attention_mask": pixel_attention_mask}
            out = self.vision_tower(context, pixel_values=pixel_values, **more)
        else:
            more = dict(sizes or {}) if self.pack is not None and self.pack.first else {}
            if pixel_attention_mask is not None:
                patch = pair(self.vision_tower.config.patch_size)[0]
                more["patch_attention_mask"] = patches_seen(pixel_attention_mask, patch)
            pixels = pixel_values.reshape(-1, *pixel_values.shape[-3:])
            out = self.vision_tower(context, pixel_values=pixels, **more)
        if self.feature_layers is None:
            x = out.last_hidden_state
        else:
            x = jnp.concatenate([out.hidden_states[i] for i in self.feature_layers], axis=-1)
        return x[:, 1:] if self.drop_first else x

    def features(self, context: Context, pixel_values: jax.Array, pixel_attention_mask: Any = None) -> jax.Array:
        """What the language model reads of images, or of their pieces: `(pieces, tokens, embed)`."""
        return self.multi_modal_projector(self.states(context, pixel_values, pixel_attention_mask))

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        image_sizes: jax.Array | None = None,
        spatial_shapes: jax.Array | None = None,
        batch_num_images: jax.Array | None = None,
        pixel_attention_mask: jax.Array | None = None,
        pixel_values_videos: jax.Array | None = None,
    ) -> Output:
        if self.blocks is not None and token_type_ids is not None:
            rule = "whole" if self.blocks == "prefix" else "cut"
            types = by_column("token_type_ids", token_type_ids, context)
            context = context.replace(blocks=image_blocks(types, self.blocks), block_rule=rule)
        if pixel_values is None and pixel_values_videos is None:
            if input_ids is not None and self.image_token >= self.language_model.config.vocab_size:
                check_places(input_ids, self.image_token, 0)  # nothing else can stand for them
            return self.language_model(context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)
        if input_ids is None:
            raise ValueError(
                "pixel_values take the places of image tokens: give input_ids with them, not inputs_embeds"
            )
        pixels = {self.image_token: pixel_values}
        if self.frames is not None:
            pixels[self.frames.token] = pixel_values_videos
        here = {token: input_ids == token for token, value in pixels.items() if value is not None}
        x = embed(self.language_model, jnp.where(functools.reduce(jnp.logical_or, here.values()), 0, input_ids))
        if pixel_values is not None:
            given = (image_sizes, spatial_shapes, batch_num_images)
            sizes = {name: value for name, value in zip(SIZES, given, strict=True) if value is not None}
            found, total = self.packed(context, pixel_values, pixel_attention_mask, input_ids.size, sizes)
            check_places(input_ids, self.image_token, total)
            x = place(x, found, here[self.image_token], total)
        if self.frames is not None and pixel_values_videos is not None:
            found = self.features(context, pixel_values_videos)
            found = self.frames(found, self.pack.image_newline, pixel_values_videos.shape[0])
            check_places(input_ids, self.frames.token, found.shape[0], "video")
            x = place(x, found, here[self.frames.token])
        return self.language_model(context, cache, inputs_embeds=x)

    def packed(
        self, context: Context, pixel_values: jax.Array, mask: Any, count: int, sizes: dict[str, Any]
    ) -> tuple[jax.Array, Any]:
        """What the language model reads of images, one after the other, for up to `count` places, and how many there are."""
        pack = lambda x: self.pack(x, count, pixel_values=pixel_values, **sizes)
        if self.pack is None:
            x = self.features(context, pixel_values, mask)
            return x.reshape(-1, x.shape[-1]), x.shape[0] * x.shape[1]
        if self.pack.first:
            x, total = pack(self.states(context, pixel_values, mask, sizes))
            return self.multi_modal_projector(x), total
        return pack(self.features(context, pixel_values, mask))
