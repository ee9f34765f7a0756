"""Language models that read images: features of a tower take the places of placeholder tokens."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .activation import activation
from .context import Context
from .grid_vision import GridImageText
from .heads import input_embeddings, max_positions
from .linear import Linear
from .output import Output
from .places import check_places, embed, place
from .vision import image_context


class Projector(eqx.Module):
    """`linear_2(act(linear_1(x)))`: from the width of the tower to that of the language model."""

    linear_1: Linear
    linear_2: Linear
    act: str = eqx.field(static=True)

    def __init__(self, size: int, out: int, act: str, *, bias: bool = True) -> None:
        activation(act)
        self.linear_1 = Linear(size, out, bias, axes=("mlp", "embed"))
        self.linear_2 = Linear(out, out, bias, axes=("embed", "mlp"))
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(activation(self.act)(self.linear_1(x)))


class ImageText(eqx.Module):
    """A tower, a projector and a decoder, as LLaVA joins them.

    `feature_layers` are the hidden states of the tower that are projected, side by side (`None`: its last one, normed);
    `drop_first` leaves out its class token.
    """

    vision_tower: Any
    multi_modal_projector: Any
    language_model: Any
    config: Any = eqx.field(static=True)
    image_token: int = eqx.field(static=True)
    feature_layers: tuple[int, ...] | None = eqx.field(static=True)
    drop_first: bool = eqx.field(static=True)

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
    ) -> None:
        self.vision_tower, self.multi_modal_projector, self.language_model = vision, projector, text
        self.config = config
        self.image_token = image_token
        self.feature_layers = feature_layers
        self.drop_first = drop_first

    def features(self, context: Context, pixel_values: jax.Array) -> jax.Array:
        """What the language model reads of images: `(count, tokens, embed)`."""
        wanted = {"hidden_states"} if self.feature_layers is not None else set()
        out = self.vision_tower(image_context(context).replace(outputs=frozenset(wanted)), pixel_values=pixel_values)
        if self.feature_layers is None:
            x = out.last_hidden_state
        else:
            x = jnp.concatenate([out.hidden_states[i] for i in self.feature_layers], axis=-1)
        return self.multi_modal_projector(x[:, 1:] if self.drop_first else x)

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        input_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        pixel_values: jax.Array | None = None,
    ) -> Output:
        if pixel_values is None:
            return self.language_model(context, cache, input_ids=input_ids, inputs_embeds=inputs_embeds)
        if input_ids is None:
            raise ValueError(
                "pixel_values take the places of image tokens: give input_ids with them, not inputs_embeds"
            )
        x = self.features(context, pixel_values)
        x = x.reshape(-1, x.shape[-1])
        check_places(input_ids, self.image_token, x.shape[0])
        here = input_ids == self.image_token
        x = place(embed(self.language_model, jnp.where(here, 0, input_ids)), x, here)
        return self.language_model(context, cache, inputs_embeds=x)


@input_embeddings.register(ImageText)
def _(model: ImageText) -> Any:
    return input_embeddings(model.language_model)


@max_positions.register(ImageText)
def _(model: ImageText) -> int | None:
    return max_positions(model.language_model)


@input_embeddings.register(GridImageText)
def _(model: GridImageText) -> Any:
    return input_embeddings(model.language_model)


@max_positions.register(GridImageText)
def _(model: GridImageText) -> int | None:
    return max_positions(model.language_model)
