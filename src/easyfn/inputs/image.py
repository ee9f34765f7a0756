"""What encoders of images take."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..nn.towers import ImageTower, TwoTowers
from ..nn.vision import ImageEncoder, pair
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
