"""DINOv3 (Siméoni et al. 2025, arXiv 2508.10104): DINOv2 with register tokens and rotary positions of patch centres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import CommonFields, Size
from ..core.weight import Slot, Weight, dense, slots
from ..names.rules import rename
from ..nn import Context, Conv, GatedMLP, declare
from ..nn.mlp import MLP
from ..nn.vision import EncoderBlock, FirstToken, ImageEncoder, SelfAttention, channels_last, masked_patches, pair
from ..registry.family import family
from .vision import VIT_BACKBONE, block_names


@dataclass(frozen=True, kw_only=True)
class DINOv3ViTConfig(CommonFields):
    """The keys of a DINOv3 ViT `config.json`."""

    model_type: ClassVar[str] = "dinov3_vit"
    patch_size: int | tuple[int, ...] = 16
    hidden_size: Size = 384
    intermediate_size: Size = 1536
    num_hidden_layers: int = 12
    num_attention_heads: Size = 6
    hidden_act: str = "gelu"
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    rope_theta: float | int = 100.0
    image_size: int | tuple[int, ...] = 224
    num_channels: Size = 3
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    layerscale_value: float | int = 1.0
    drop_path_rate: float | int = 0.0
    use_gated_mlp: bool = False
    num_register_tokens: int = 0
    pos_embed_shift: float | int | None = None
    pos_embed_jitter: float | int | None = None
    pos_embed_rescale: float | int | None = 2.0


class DINOv3Embeddings(eqx.Module):
    """Class token, registers and patches, and the rotary table of the patches' centres (the others stay as they are)."""

    cls_token: Weight
    mask_token: Weight
    register_tokens: Weight
    patch_embeddings: Conv
    config: DINOv3ViTConfig = eqx.field(static=True)

    def __init__(self, c: DINOv3ViTConfig) -> None:
        self.cls_token, self.mask_token = declare(1, 1, c.hidden_size), declare(1, 1, c.hidden_size)
        self.register_tokens = declare(1, c.num_register_tokens, c.hidden_size)
        self.patch_embeddings = Conv(c.num_channels, c.hidden_size, pair(c.patch_size), stride=pair(c.patch_size))
        self.config = c

    def __call__(
        self, context: Context, pixel_values: jax.Array, bool_masked_pos: Any = None, interpolate: bool = True
    ) -> tuple[jax.Array, Context]:
        c = self.config
        x = self.patch_embeddings(channels_last(pixel_values, dense(self.patch_embeddings.weight)))
        grid, batch = x.shape[1:3], x.shape[0]
        x = masked_patches(self.mask_token, x.reshape(batch, -1, x.shape[-1]), bool_masked_pos)
        first = jnp.concatenate([dense(self.cls_token), dense(self.register_tokens)], axis=1).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, *first.shape[1:])), x], axis=1)
        centres = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij"), -1).reshape(-1, 2)
        places = self._augmented(jnp.asarray(2 * centres - 1, jnp.float32), context)
        quarter = c.hidden_size // c.num_attention_heads // 4
        inv = 1 / c.rope_theta ** np.arange(0, 1, 1 / quarter, dtype=np.float32)
        angles = (2 * math.pi * places[:, :, None] * jnp.asarray(inv)[None, None]).reshape(len(centres), -1)
        angles = jnp.pad(angles, ((first.shape[1], 0), (0, 0)))[None]
        return x, context.replace(rope={"image": (jnp.cos(angles), jnp.sin(angles))})

    def _augmented(self, places: jax.Array, context: Context) -> jax.Array:
        """In training (with a key) the coordinates are shifted and stretched at random, as DINOv3 was trained."""
        c = self.config
        if context.key is None:
            return places
        shift, jitter, scale = jax.random.split(jax.random.fold_in(context.key, 1_000_003), 3)
        draw = lambda key, shape, limit: jax.random.uniform(key, shape, minval=-limit, maxval=limit)
        if c.pos_embed_shift is not None:
            places = places + draw(shift, (1, 2), c.pos_embed_shift)
        if c.pos_embed_jitter is not None:
            places = places * jnp.exp(draw(jitter, (1, 2), math.log(c.pos_embed_jitter)))
        if c.pos_embed_rescale is not None:
            places = places * jnp.exp(draw(scale, (1, 1), math.log(c.pos_embed_rescale)))
        return places


@slots.register(DINOv3Embeddings)
def _(embeddings: DINOv3Embeddings) -> dict[str, Slot]:
    token = Slot("other", (None, None, "embed"))
    return {"cls_token": token, "register_tokens": token, "mask_token": Slot("other", (None, None, "embed"), "zeros")}


def dinov3(c: DINOv3ViTConfig) -> ImageEncoder:
    def block() -> EncoderBlock:
        bias = (c.query_bias, c.key_bias, c.value_bias, c.proj_bias)
        attention = SelfAttention(c.hidden_size, c.num_attention_heads, bias=bias, dropout=c.attention_dropout)
        kind = GatedMLP if c.use_gated_mlp else MLP
        mlp = kind(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
        scale, path = float(c.layerscale_value), c.drop_path_rate
        return EncoderBlock(c.hidden_size, attention, mlp, c.layer_norm_eps, scale=scale, drop_path=path)

    layers = [block() for _ in range(c.num_hidden_layers)]
    return ImageEncoder(c, DINOv3Embeddings(c), layers, pooler=FirstToken(), interpolate=True)


family(
    "dinov3_vit",
    config=DINOv3ViTConfig,
    tasks={"base": dinov3},
    architectures={"DINOv3ViTModel": "base"},
    names=[*block_names("layers", "layer", {}), rename("layernorm.{rest}", "norm.{rest}")],
    modules=[*block_names("layers", "model.layer", {}), rename("layernorm.{rest}", "norm.{rest}")],
    # of the backbone for detection and segmentation
    ignore=VIT_BACKBONE,
    prefix="",
)
