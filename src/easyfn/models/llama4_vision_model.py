"""The image tower of Llama 4 (Meta 2025): height and width turn beside learned places; squares of patches through an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import CommonFields, Positive, Size, rope
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dense, slots
from ..inputs.image import image_inputs
from ..inputs.statement import Inputs, inputs
from ..names.rules import rename
from ..nn import LayerNorm, Linear
from ..nn.activation import activation
from ..nn.context import Context, dropout
from ..nn.linear import declare
from ..nn.mlp import MLP
from ..nn.output import Output
from ..nn.projectors import squares
from ..nn.towers import run_tower
from ..nn.vision import EncoderBlock, SelfAttention, image_context
from ..registry.family import family
from .vision import block_names


@dataclass(frozen=True, kw_only=True)
class Llama4VisionConfig(CommonFields):
    """The keys of Llama 4's `vision_config`. Three widths say the same of the adapter: `projector_input_dim`,
    `projector_output_dim` and `vision_output_dim`."""

    model_type: ClassVar[str] = "llama4_vision_model"
    # transformers reads none of them: gelu is said in its code, and so is the epsilon.
    ignored: ClassVar = ("hidden_act", "norm_eps", "vision_feature_select_strategy", "multi_modal_projector_bias")
    hidden_size: Size = 768
    intermediate_size: Size = 5632
    num_hidden_layers: int = 34
    num_attention_heads: Size = 16
    num_channels: Size = 3
    image_size: Size = 448
    patch_size: Size = 14
    vision_output_dim: Size = 7680
    pixel_shuffle_ratio: Positive = 0.5
    projector_input_dim: Size = 4096
    projector_output_dim: Size = 4096
    projector_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    rope_parameters: Frozen = rope(10000.0)


class Adapter(eqx.Module):
    """Squares of `square` by `square` patches, side by side, through two matrices and an activation behind each."""

    fc1: Linear
    fc2: Linear
    square: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: Llama4VisionConfig) -> None:
        self.square = round(1 / c.pixel_shuffle_ratio)
        if self.square < 1 or abs(c.pixel_shuffle_ratio * self.square - 1) > 1e-6:
            raise ValueError(
                f"llama4: pixel_shuffle_ratio={c.pixel_shuffle_ratio} is to be 1, 1/2, 1/3, ...: 1 / a side"
            )
        wide, out = c.hidden_size * self.square**2, c.projector_input_dim
        if c.intermediate_size != wide:
            raise ValueError(
                f"llama4: intermediate_size={c.intermediate_size} is also what the adapter reads, {self.square} x "
                f"{self.square} patches of hidden_size={c.hidden_size}: it must be {wide}"
            )
        if not out == c.projector_output_dim == c.vision_output_dim:
            raise ValueError(
                f"llama4: projector_input_dim={out}, projector_output_dim={c.projector_output_dim} and vision_output_dim="
                f"{c.vision_output_dim} are one width"
            )
        self.fc1 = Linear(wide, out, axes=("mlp", "embed"))
        self.fc2 = Linear(out, out, axes=("embed", "mlp"))
        self.dropout = c.projector_dropout

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        act = activation("gelu")
        x = dropout(act(self.fc1(squares(x, self.square))), self.dropout, context, 1_000_003)
        return act(self.fc2(x))


class Llama4Tower(eqx.Module):
    """Tiles `(tiles, channels, height, width)` to `(tiles, squares of patches, vision_output_dim)`. The class token is the last,
    and does not turn."""

    patch_embedding: Linear
    class_embedding: Weight
    positional_embedding_vlm: Weight
    layernorm_pre: LayerNorm
    layers: tuple[EncoderBlock, ...]
    layernorm_post: LayerNorm
    vision_adapter: Adapter
    config: Llama4VisionConfig = eqx.field(static=True)

    def __init__(self, c: Llama4VisionConfig) -> None:
        size = c.hidden_size
        if size % c.num_attention_heads or size // c.num_attention_heads % 4:
            raise ValueError(
                f"llama4: hidden_size={size} over num_attention_heads={c.num_attention_heads}: heads must have quarters to turn"
            )
        if (kind := c.rope_parameters.get("rope_type", "default")) != "default":
            raise ValueError(f"llama4: rope_type={kind!r} of the tower: it turns by height and width alone, 'default'")

        def block() -> EncoderBlock:
            attention = SelfAttention(size, c.num_attention_heads, dropout=c.attention_dropout, interleaved=True)
            return EncoderBlock(size, attention, MLP(size, c.intermediate_size, "gelu", bias=True), 1e-5)

        self.patch_embedding = Linear(c.num_channels * c.patch_size**2, size, axes=("embed", None))
        self.class_embedding = declare(size)
        self.positional_embedding_vlm = declare((c.image_size // c.patch_size) ** 2 + 1, size)
        self.layernorm_pre, self.layernorm_post = LayerNorm(size, 1e-5), LayerNorm(size, 1e-5)
        self.layers = tuple(block() for _ in range(c.num_hidden_layers))
        self.vision_adapter = Adapter(c)
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, pixel_values: jax.Array) -> Output:
        c = self.config
        side, patch = c.image_size // c.patch_size, c.patch_size
        if tuple(size // patch for size in pixel_values.shape[-2:]) != (side, side):
            raise ValueError(
                f"pixel_values of {pixel_values.shape[-2:]} are no tiles of image_size={c.image_size}: Llama 4 reads no others"
            )
        x = pixel_values[..., : side * patch, : side * patch].astype(dense(self.patch_embedding.weight).dtype)
        x = x.reshape(x.shape[0], c.num_channels, side, patch, side, patch)
        x = x.transpose(0, 2, 4, 1, 3, 5).reshape(x.shape[0], side**2, -1)
        x = self.patch_embedding(x)
        last = jnp.broadcast_to(dense(self.class_embedding).astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([x, last], axis=1) + dense(self.positional_embedding_vlm)[None].astype(x.dtype)
        context = image_context(context).replace(rope={"image": self._turns(side)})
        x, trace = run_tower(self.layers, self.layernorm_pre(x), context)
        x = self.vision_adapter(self.layernorm_post(x)[:, :-1], context)
        return Output(last_hidden_state=x, **trace)

    def _turns(self, side: int) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines `(1, patches + 1, head_dim / 2)`: the column, counted from 1, turns the first half, the row the
        second."""
        c = self.config
        half = c.hidden_size // c.num_attention_heads // 2
        inv = 1.0 / float(c.rope_parameters["rope_theta"]) ** (np.arange(0, half, 2) / half)
        row, column = np.divmod(np.arange(side**2), side)
        angles = np.concatenate([(place + 1)[:, None] * inv for place in (column, row)], axis=-1)
        turns = jnp.asarray(np.pad(angles, ((0, 1), (0, 0)))[None], jnp.float32)
        return jnp.cos(turns), jnp.sin(turns)


@slots.register(Llama4Tower)
def _(tower: Llama4Tower) -> dict[str, Slot]:
    return {"class_embedding": Slot("other", ("embed",)), "positional_embedding_vlm": Slot("other", (None, "embed"))}


@inputs.register(Llama4Tower)
def _(model: Llama4Tower) -> Inputs:
    return image_inputs(model.config, settings=())


_BLOCK = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention": "self_attn",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}

family(
    "llama4_vision_model",
    config=Llama4VisionConfig,
    tasks={"base": Llama4Tower},
    architectures={"Llama4VisionModel": "base"},
    names=[
        *block_names("layers", "model.layers", _BLOCK),
        rename("patch_embedding.{rest}", "patch_embedding.linear.{rest}"),
        rename("vision_adapter.{rest}", "vision_adapter.mlp.{rest}"),
    ],
    prefix="vision_model",
)
