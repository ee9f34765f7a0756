"""What encoders of images take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..nn.context import Context
from ..nn.grid_vision import GridImageText, grid_positions_of
from ..nn.image_text import SIZES, ImageText
from ..nn.native_tower import NativeTower
from ..nn.packing import AnyResolution, PatchBlocks, PatchSquares, RealImages
from ..nn.patch_tower import PatchTower
from ..nn.pixtral import PixtralTower
from ..nn.places import check_places
from ..nn.towers import ImageTower, TwoTowers
from ..nn.vision import ImageEncoder, pair
from .checks import fits
from .context import positions
from .statement import Input, Inputs, inputs


def image_inputs(config: Any, *, settings: tuple[str, ...] = ("interpolate_pos_encoding",), **more: Input) -> Inputs:
    """`pixel_values` of a config's channels, of its `image_size` in samples (224 where it has none); `settings` are switches
    of the model's own."""
    height, width = pair(getattr(config, "image_size", 224))
    fields = {"pixel_values": Input("image", ("batch", config.num_channels, "height", "width"), optional=False)}
    fields |= {name: Input("setting", None) for name in settings} | more
    return Inputs(fields, ("pixel_values",), {"height": height, "width": width})


@inputs.register(ImageEncoder)
def _(model: ImageEncoder) -> Inputs:
    masked = getattr(model.embeddings, "mask_token", None) is not None
    more = {"bool_masked_pos": Input("mask", ("batch", "patches"))} if masked else {}
    return image_inputs(model.config, **more)  # type: ignore[arg-type]


@inputs.register(ImageTower)
def _(model: ImageTower) -> Inputs:
    return image_inputs(model.config)


@inputs.register(NativeTower)
def _(model: NativeTower) -> Inputs:
    return image_inputs(model.config, settings=(), patch_attention_mask=Input("mask", ("batch", "rows", "columns")))


@inputs.register(PatchTower)
def _(model: PatchTower) -> Inputs:
    c = model.config
    patch = pair(c.patch_size)
    fields = {
        "pixel_values": Input("image", ("batch", "patches", c.num_channels * patch[0] * patch[1]), optional=False),
        "spatial_shapes": Input("index", ("batch", 2)),
        "pixel_attention_mask": Input("mask", ("batch", "patches")),
    }
    return Inputs(fields, ("pixel_values",), {"patches": c.num_patches})


@inputs.register(PixtralTower)
def _(model: PixtralTower) -> Inputs:
    stated = image_inputs(model.config, settings=())
    return stated.replace(fields={**stated.fields, "image_sizes": Input("index", ("batch", 2))})


@inputs.register(TwoTowers)
def _(model: TwoTowers) -> Inputs:
    text, image = inputs(model.text_model), inputs(model.vision_model)
    ids = dataclasses.replace(text.fields["input_ids"], optional=False)
    types = {name: one for name, one in text.fields.items() if name == "token_type_ids"}
    beside = {
        name: dataclasses.replace(one, shape=("images", *one.shape[1:]))
        for name, one in image.fields.items()
        if one.shape is not None
    }
    fields = {"input_ids": ids, **types, **image.fields, **beside}
    return Inputs(fields, ("input_ids", "pixel_values"), image.sizes)


@inputs.register(ImageText)
def _(model: ImageText) -> Inputs:
    text, image = inputs(model.language_model), inputs(model.vision_tower)
    pixels = image.fields["pixel_values"]
    pieces: dict[Any, tuple[str, ...]] = {AnyResolution: ("images", "tiles"), RealImages: ("batch", "images")}
    before = pieces.get(type(model.pack), ("images",))
    pixels = dataclasses.replace(pixels, shape=(*before, *pixels.shape[1:]), optional=True)
    ids = text.fields["input_ids"]
    below = None if ids.below is None else max(ids.below, model.image_token + 1)  # it may lie beyond the vocabulary
    fields = {**text.fields, "input_ids": dataclasses.replace(ids, below=below), "pixel_values": pixels}
    if model.blocks is not None:
        fields["token_type_ids"] = Input("mask")  # what is an image, or a prefix
    if isinstance(model.pack, AnyResolution | PatchSquares):
        fields["image_sizes"] = Input("index", ("images", 2))
    if isinstance(model.pack, AnyResolution) and model.pack.most is not None:
        fields["batch_num_images"] = Input("index", ("batch",))
    if model.frames is not None:
        shape = ("videos", "frames", *pixels.shape[len(before) :])
        fields["pixel_values_videos"] = dataclasses.replace(pixels, shape=shape)
    if isinstance(model.pack, PatchBlocks):
        fields["spatial_shapes"] = Input("index", ("images", 2))
        fields["pixel_attention_mask"] = Input("mask", ("images", "patches"))
    if isinstance(model.pack, RealImages):
        fields["pixel_attention_mask"] = Input("mask", (*before, "height", "width"))
    return text.replace(fields=fields, sizes={**image.sizes, "images": 1, "tiles": 2})


@fits.register(ImageText)
def _(model: ImageText, given: Mapping[str, Any]) -> None:
    none = jnp.zeros((1, 1), jnp.int32)
    context = Context(none, None, slots=none[0], order=none[0])
    if (pixels := given.get("pixel_values")) is not None:
        first = model.pack is not None and model.pack.first
        sizes = {name: given[name] for name in SIZES if given.get(name) is not None}
        made = (lambda context, x: model.states(context, x, sizes=sizes)) if first else model.features
        found = jax.eval_shape(made, context, pixels)
        count: Any = found.shape[0] * found.shape[1]
        if model.pack is not None:
            tokens = jnp.zeros((*found.shape[:2], 1))  # how many there are, whatever they say
            count = model.pack(tokens, 1, pixel_values=pixels, **sizes)[1]
        check_places(given["input_ids"], model.image_token, count)
    if model.frames is not None and (pixels := given.get("pixel_values_videos")) is not None:
        found = jax.eval_shape(model.features, context, pixels)
        count = model.frames(jnp.zeros((*found.shape[:2], 1)), jnp.zeros((1,)), pixels.shape[0]).shape[0]
        check_places(given["input_ids"], model.frames.token, count, "video")


@positions.register(ImageText)
def _(model: ImageText, context: Context, given: Mapping[str, Any], start: Any) -> jax.Array:
    if not model.first_position:
        return context.position_ids
    begins = jnp.asarray(start, jnp.int32) == 0
    return context.position_ids + jnp.where(begins, model.first_position, 0).reshape(-1, 1)


@inputs.register(GridImageText)
def _(model: GridImageText) -> Inputs:
    text, v = inputs(model.language_model), model.visual.config
    wide = v.in_channels * v.temporal_patch_size * v.patch_size**2
    ids = text.fields["input_ids"]
    tokens = (model.config.image_token_id, model.video_token)
    below = None if ids.below is None else max(ids.below, *(token + 1 for token in tokens))
    fields = {
        **text.fields,
        "input_ids": dataclasses.replace(ids, below=below),
        "pixel_values": Input("image", ("patches", wide)),
        "image_grid_thw": Input("index", ("images", 3)),
        "pixel_values_videos": Input("image", ("patches", wide)),
        "video_grid_thw": Input("index", ("videos", 3)),
        "second_per_grid_ts": Input("setting", None),
        "mm_token_type_ids": Input("index", below=3),  # what the ids say themselves
    }
    return text.replace(fields=fields, position_axes=3)


@positions.register(GridImageText)
def _(model: GridImageText, context: Context, given: Mapping[str, Any], start: Any) -> jax.Array:
    grids = [given.get(f"{kind}_grid_thw") for kind in ("image", "video")]
    if given.get("input_ids") is None or all(grid is None for grid in grids):
        return context.position_ids
    seconds = given.get("second_per_grid_ts")
    still = None if grids[0] is None else jnp.ones((grids[0].shape[0],))
    moving = None
    if grids[1] is not None:
        apart = jnp.ones((grids[1].shape[0],)) if seconds is None else jnp.asarray(seconds, jnp.float32)
        moving = apart * model.video_step
    tokens = (model.config.image_token_id, model.video_token)
    kinds = list(zip(tokens, grids, (still, moving), strict=True))
    return grid_positions_of(
        given["input_ids"], context.segment_ids, start, model.visual.merge, kinds, framed=model.framed
    )


@fits.register(GridImageText)
def _(model: GridImageText, given: Mapping[str, Any]) -> None:
    kinds = (
        ("image", "pixel_values", model.config.image_token_id),
        ("video", "pixel_values_videos", model.video_token),
    )
    for kind, pixels, token in kinds:
        if given.get(pixels) is not None:
            check_places(given["input_ids"], token, given[pixels].shape[0] // model.visual.merge**2, kind)
