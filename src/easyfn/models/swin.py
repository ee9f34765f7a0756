"""Swin (Liu et al. 2021, arXiv 2103.14030): attention in windows, shifted in every other layer, in stages that shrink."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import CommonFields, Size
from ..core.stack import one_by_one
from ..core.weight import Slot, Weight, dense, slots, take
from ..inputs.image import image_inputs
from ..inputs.statement import Input, Inputs, inputs
from ..names.rules import Rule, rename
from ..nn import Context, Conv, LayerNorm, Linear, Output, declare, dropout, fold
from ..nn.image_heads import ImageClassifier, MaskedPixels
from ..nn.mlp import MLP
from ..nn.vision import (
    SelfAttention,
    channels_last,
    drop_path,
    grid_positions,
    image_context,
    masked_patches,
    pair,
)
from ..registry.family import family
from .vision import BACKBONE, LEGACY, MODULES, block_names, head_names


@dataclass(frozen=True, kw_only=True)
class SwinFields(CommonFields):
    """The keys that both Swin have."""

    ignored: ClassVar[tuple[str, ...]] = ("hidden_size", "num_layers", "path_norm")  # derived
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 4
    num_channels: Size = 3
    embed_dim: Size = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: Size = 7
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    encoder_stride: Size = 32
    width = property(lambda c: c.embed_dim * 2 ** (len(c.depths) - 1))  # of the last stage


@dataclass(frozen=True, kw_only=True)
class SwinConfig(SwinFields):
    """The keys of a Swin `config.json`."""

    model_type: ClassVar[str] = "swin"
    use_absolute_embeddings: bool = False


def _padded(x: jax.Array, size: int) -> jax.Array:
    """`(batch, height, width, channels)` with zeros below and on the right, up to multiples of `size`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, -x.shape[2] % size), (0, 0)))


def _windows(x: jax.Array, size: int) -> jax.Array:
    """`(batch, height, width, channels)` to `(batch * windows, size * size, channels)`."""
    b, h, w, c = x.shape
    return jnp.swapaxes(x.reshape(b, h // size, size, w // size, size, c), 2, 3).reshape(-1, size * size, c)


def _whole(x: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `_windows`."""
    c = x.shape[-1]
    x = x.reshape(-1, height // size, width // size, size, size, c)
    return jnp.swapaxes(x, 2, 3).reshape(-1, height, width, c)


def _regions(height: int, width: int, size: int, shift: int) -> np.ndarray:
    """After a shift a window holds pieces of an image that do not lie together: the number of each place's piece, from 1."""
    rows, columns = ((np.arange(n) >= n - size).astype(int) + (np.arange(n) >= n - shift) for n in (height, width))
    pieces = (rows[:, None] * 3 + columns[None] + 1).reshape(height // size, size, width // size, size)
    return np.swapaxes(pieces, 1, 2).reshape(-1, size * size)


def in_windows(
    x: jax.Array, size: int, shift: int, bias: jax.Array, context: Context, attention: Callable[..., Any]
) -> tuple[jax.Array, Any]:
    """What `attention(rows, context)` says of each window of `size` by `size` places of `x` `(batch, height, width, channels)`,
    after the image was shifted by `shift` places; and its weights."""
    height, width = x.shape[1:3]
    h = _padded(x, size)
    tall, wide = h.shape[1:3]
    rows = _windows(jnp.roll(h, (-shift, -shift), (1, 2)) if shift else h, size)
    inner = context.replace(bias=bias, slots=jnp.arange(size * size))
    if shift:
        pieces = jnp.tile(jnp.asarray(_regions(tall, wide, size, shift), jnp.int32), (x.shape[0], 1))
        inner = inner.replace(segment_ids=pieces)
    rows, attentions = attention(rows, inner)
    h = _whole(rows, size, tall, wide)
    return (jnp.roll(h, (shift, shift), (1, 2)) if shift else h)[:, :height, :width], attentions


def offsets(size: int) -> np.ndarray:
    """The row, in a table of all `(2 * size - 1)^2` offsets, of each pair of places of a window: `(size^2, size^2)`."""
    places = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    offset = places[:, None] - places[None] + size - 1
    return offset[..., 0] * (2 * size - 1) + offset[..., 1]


class SwinLayer(eqx.Module):
    """Attention within windows, with a learned bias for each offset, then an MLP: both pre-norm."""

    norm1: LayerNorm
    attention: SelfAttention
    relative_position_bias_table: Weight  # [(2 * window - 1)^2, heads]
    norm2: LayerNorm
    mlp: MLP
    window: int = eqx.field(static=True)
    shift: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __init__(self, c: SwinConfig, size: int, heads: int, shift: int, rate: float) -> None:
        bias = (c.qkv_bias, c.qkv_bias, c.qkv_bias, True)
        self.norm1, self.norm2 = LayerNorm(size, c.layer_norm_eps), LayerNorm(size, c.layer_norm_eps)
        self.attention = SelfAttention(size, heads, bias=bias, dropout=c.attention_probs_dropout_prob)
        self.relative_position_bias_table = declare((2 * c.window_size - 1) ** 2, heads)
        self.mlp = MLP(size, int(c.mlp_ratio * size), c.hidden_act, bias=True)
        self.window, self.shift, self.dropout, self.rate = c.window_size, shift, c.hidden_dropout_prob, rate

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        height, width = x.shape[1:3]
        size, shift = self.window, self.shift if min(height, width) > self.window else 0
        if min(height, width) < size:
            raise ValueError(
                f"an image of {height} x {width} patches is smaller than the window of {size}: give a larger one"
            )
        h, attentions = in_windows(self.norm1(x), size, shift, self._bias(), context, self.attention)
        h = dropout(h, self.dropout, context, 1)
        x = x + drop_path(h, self.rate, context, 2)
        return (
            x + dropout(self.mlp(self.norm2(x), context), self.dropout, context, 3),
            cache,
            {"attentions": attentions},
        )

    def _bias(self) -> jax.Array:
        index = jnp.asarray(offsets(self.window))
        return jnp.moveaxis(take(self.relative_position_bias_table, index), -1, 0)[None]


@slots.register(SwinLayer)
def _(layer: SwinLayer) -> dict[str, Slot]:
    return {"relative_position_bias_table": Slot("other", (None, "heads"), "zeros")}


def squares(x: jax.Array) -> jax.Array:
    """Squares of two by two places as one place of four times as many channels, zeros where the image ends in between."""
    x = _padded(x, 2)
    return jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)


class SwinMerging(eqx.Module):
    """Squares of two by two places become one of twice as many channels."""

    norm: LayerNorm
    reduction: Linear

    def __init__(self, size: int) -> None:
        self.norm = LayerNorm(4 * size, 1e-5)
        self.reduction = Linear(4 * size, 2 * size, axes=("embed", None))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.reduction(self.norm(squares(x)))


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


class SwinStage(eqx.Module):
    blocks: tuple[Any, ...]
    downsample: Any


class SwinEmbeddings(eqx.Module):
    projection: Conv
    norm: LayerNorm
    position_embeddings: Weight | None
    mask_token: Weight | None


@slots.register(SwinEmbeddings)
def _(embeddings: SwinEmbeddings) -> dict[str, Slot]:
    return dict.fromkeys(("position_embeddings", "mask_token"), Slot("other", (None, None, "embed"), "zeros"))


class Swin(eqx.Module):
    """Pixels to `last_hidden_state` `(batch, places, channels)`, normed, and its mean."""

    embeddings: SwinEmbeddings
    stages: tuple[SwinStage, ...]
    layernorm: LayerNorm
    config: SwinFields = eqx.field(static=True)

    def __init__(
        self, c: SwinFields, layer: Callable[..., Any], merging: Callable[[int], Any], *, masked: bool = False
    ) -> None:
        """`layer(stage, number in it, channels, rate of stochastic depth)` makes a layer, `merging(channels)` what stands
        between stages; with `masked` there is a token for patches that are masked."""
        image, patch = pair(c.image_size), pair(c.patch_size)
        count = (image[0] // patch[0]) * (image[1] // patch[1])
        positions = declare(1, count, c.embed_dim) if getattr(c, "use_absolute_embeddings", False) else None
        first = Conv(c.num_channels, c.embed_dim, patch, stride=patch)
        token = declare(1, 1, c.embed_dim) if masked else None
        self.embeddings = SwinEmbeddings(first, LayerNorm(c.embed_dim, 1e-5), positions, token)
        last, total = len(c.depths) - 1, max(sum(c.depths) - 1, 1)

        def stage(i: int) -> SwinStage:
            size, before = c.embed_dim * 2**i, sum(c.depths[:i])
            rate = lambda j: c.drop_path_rate * (before + j) / total
            return SwinStage(
                tuple(layer(i, j, size, rate(j)) for j in range(c.depths[i])), merging(size) if i < last else None
            )

        self.stages = tuple(stage(i) for i in range(len(c.depths)))
        self.layernorm = LayerNorm(c.width, c.layer_norm_eps)
        self.config = c

    def __call__(
        self,
        context: Context,
        cache: Any = None,
        *,
        pixel_values: jax.Array,
        bool_masked_pos: Any = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Output:
        context = image_context(context)
        inner = context.replace(outputs=context.outputs - {"hidden_states"})  # of stages, not of layers
        x = channels_last(pixel_values, dense(self.embeddings.projection.weight))
        patch = pair(self.config.patch_size)
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % patch[0]), (0, -x.shape[2] % patch[1]), (0, 0)))
        x = self.embeddings.norm(self.embeddings.projection(x))
        if bool_masked_pos is not None:
            x = masked_patches(self.embeddings.mask_token, _flat(x), bool_masked_pos).reshape(x.shape)
        if self.embeddings.position_embeddings is not None:
            image, here = pair(self.config.image_size), (x.shape[1], x.shape[2])
            old = (image[0] // patch[0], image[1] // patch[1])
            table = dense(self.embeddings.position_embeddings)[0]
            table = grid_positions(table, old, here, 0, interpolate=bool(interpolate_pos_encoding))
            x = x + table.reshape(1, *here, -1).astype(x.dtype)
        x = dropout(x, self.config.hidden_dropout_prob, context, 1_000_003)
        states, attentions, index = [_flat(x)], (), 0
        for stage in one_by_one(self.stages):
            x, _, trace = fold(stage.blocks, x, inner, index=index)
            attentions += trace.get("attentions", ())[-1:]  # of each stage its last, as transformers
            index += len(stage.blocks)
            x = x if stage.downsample is None else stage.downsample(x)
            states.append(_flat(x))
        x = self.layernorm(_flat(x))
        pooled = jnp.mean(x.astype(jnp.float32), axis=1).astype(x.dtype)
        return Output(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=tuple(states) if context.wants("hidden_states") else None,
            attentions=attentions or None,
        )


@inputs.register(Swin)
def _(model: Swin) -> Inputs:
    masked = model.embeddings.mask_token is not None
    more = {"bool_masked_pos": Input("mask", ("batch", "patches"))} if masked else {}
    return image_inputs(model.config, **more)  # type: ignore[arg-type]


SELF = {a: b.replace("attention.attention.", "attention.self.") for a, b in LEGACY.items()}
EMBEDDINGS = rename("embeddings.projection.{rest}", "embeddings.patch_embeddings.projection.{rest}")


def _rules(bias: str, parts: Mapping[str, str]) -> list[Rule]:
    return [
        EMBEDDINGS,
        rename(
            "stages.{i}.blocks.{j}.relative_position_bias_table",
            f"encoder.layers.{{i}}.blocks.{{j}}.attention.{bias}.relative_position_bias_table",
        ),
        *block_names("stages.{j}.blocks", "encoder.layers.{j}.blocks", parts),
        rename("stages.{rest}", "encoder.layers.{rest}"),
    ]


def swin_family(name: str, config: type, build: Callable[..., Swin], **facts: Any) -> None:
    """Registers a Swin, `build(config, masked=...)`, whose transformers classes begin with `name`."""
    kind = config.model_type  # type: ignore[attr-defined]
    family(
        kind,
        config=config,
        tasks={
            "base": build,
            "image-classification": lambda c: ImageClassifier(build(c), pooling="pooler", size=c.width),
            "masked-image-modeling": lambda c: MaskedPixels(build(c, masked=True), c.width, extra=0),
        },
        architectures={
            f"{name}Model": "base",
            f"{name}ForImageClassification": "image-classification",
            f"{name}ForMaskedImageModeling": "masked-image-modeling",
        },
        # of the backbone for detection and segmentation
        ignore=BACKBONE,
        ignore_tensors=(r"relative_position_index$", r"relative_coords_table$", r"attn_mask$"),
        prefix=kind,
        **facts,
    )


def swin(c: SwinConfig, *, masked: bool = False) -> Swin:
    shift = lambda j: c.window_size // 2 if j % 2 else 0
    layer = lambda i, j, size, rate: SwinLayer(c, size, c.num_heads[i], shift(j), rate)
    return Swin(c, layer, SwinMerging, masked=masked)


swin_family(
    "Swin",
    SwinConfig,
    swin,
    names=lambda model: head_names(model, Swin, _rules("self", SELF), "swin"),
    modules=lambda model: head_names(model, Swin, _rules("relative_position_bias", MODULES), "swin"),
)
