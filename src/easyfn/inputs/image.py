"""What encoders of images take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..nn.context import Context
from ..nn.image_text import ImageText, check_places
from ..nn.towers import ImageTower, TwoTowers
from ..nn.vision import ImageEncoder, pair
from .checks import fits
from .statement import Input, Inputs, inputs


def image_inputs(config: Any, *, settings: tuple[str, ...] = ("interpolate_pos_encoding",), **more: Input) -> Inputs:
    """`pixel_values` of a config's channels, of its `image_size` in samples; `settings` are switches of the model's own."""
    height, width = pair(config.image_size)
    fields = {"pixel_values": Input("image", ("batch", config.num_channels, "height", "width"), optional=False)}
    fields |= {name: Input("setting", None) for name in settings} | more
    return Inputs(fields, ("pixel_values",), {"height": height, "width": width})


@inputs.register(ImageEncoder)
def _(model: ImageEncoder) -> Inputs:
    masked = getattr(model.embeddings, "mask_token", None) is not None
    more = {"bool_masked_pos": Input("mask", ("batch", "patches"))} if masked else {}
    return image_inputs(model.config, **more)


@inputs.register(ImageTower)
def _(model: ImageTower) -> Inputs:
    return image_inputs(model.config)


@inputs.register(TwoTowers)
def _(model: TwoTowers) -> Inputs:
    text, image = inputs(model.text_model), inputs(model.vision_model)
    pixels = image.fields["pixel_values"]
    pixels = dataclasses.replace(pixels, shape=("images", *pixels.shape[1:]))
    ids = dataclasses.replace(text.fields["input_ids"], optional=False)
    types = {name: one for name, one in text.fields.items() if name == "token_type_ids"}
    fields = {"input_ids": ids, **types, **image.fields, "pixel_values": pixels}
    return Inputs(fields, ("input_ids", "pixel_values"), {**image.sizes, "images": 2})


@inputs.register(ImageText)
def _(model: ImageText) -> Inputs:
    text, image = inputs(model.language_model), inputs(model.vision_tower)
    pixels = image.fields["pixel_values"]
    pixels = dataclasses.replace(pixels, shape=("images", *pixels.shape[1:]), optional=True)
    ids = text.fields["input_ids"]
    below = None if ids.below is None else max(ids.below, model.image_token + 1)  # it may lie beyond the vocabulary
    fields = {**text.fields, "input_ids": dataclasses.replace(ids, below=below), "pixel_values": pixels}
    return text.replace(fields=fields, sizes={**image.sizes, "images": 1})


@fits.register(ImageText)
def _(model: ImageText, given: Mapping[str, Any]) -> None:
    if given.get("pixel_values") is None:
        return
    none = jnp.zeros((1, 1), jnp.int32)
    found = jax.eval_shape(model.features, Context(none, None, slots=none[0], order=none[0]), given["pixel_values"])
    check_places(given["input_ids"], model.image_token, found.shape[0] * found.shape[1])
