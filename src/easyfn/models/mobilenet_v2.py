"""MobileNet V2 (Sandler et al. 2018, arXiv 1801.04381): few channels between layers, many in them, and depthwise convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import CommonFields, Size
from ..core.weight import dense
from ..inputs.image import image_inputs
from ..inputs.statement import Inputs, inputs
from ..names.rules import rename
from ..nn import BatchNorm, Context, Conv, Output, dropout, fold
from ..nn.activation import activation
from ..nn.image_heads import ImageClassifier, SemanticSegmenter
from ..nn.vision import channels_last, image_context
from ..registry.family import family
from .vision import batches_tracked, head_names

CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class MobileNetV2Config(CommonFields):
    """The keys of a MobileNet V2 `config.json`."""

    model_type: ClassVar[str] = "mobilenet_v2"
    num_channels: Size = 3
    image_size: int | tuple[int, ...] = 224
    depth_multiplier: float | int = 1.0
    depth_divisible_by: Size = 8
    min_depth: Size = 8
    expand_ratio: float | int = 6.0
    output_stride: Size = 32
    first_layer_is_expansion: bool = True
    finegrained_output: bool = True
    hidden_act: str = "relu6"
    tf_padding: bool = True
    classifier_dropout_prob: float | int = 0.8
    layer_norm_eps: float = 0.001
    semantic_loss_ignore_index: int = 255

    def rounded(self, channels: float) -> int:
        """So many channels as a multiple of `depth_divisible_by`, and no more than a tenth less."""
        value, by = round(channels), self.depth_divisible_by
        near = max(self.min_depth, int(value + by / 2) // by * by)
        return near + by if near < 0.9 * value else near

    def wide(self, channels: int) -> int:
        return self.rounded(channels * self.depth_multiplier)

    @property
    def width(self) -> int:
        """The channels of the last convolution."""
        return 1280 if self.finegrained_output and self.depth_multiplier < 1.0 else self.wide(1280)


class ConvLayer(eqx.Module):
    """`act(norm(convolution(x)))` on `(batch, height, width, channels)`, with zeros around it as TensorFlow (`same`) or torch."""

    convolution: Conv
    normalization: BatchNorm | None
    act: str = eqx.field(static=True)
    same: bool = eqx.field(static=True)
    kernel: int = eqx.field(static=True)

    def __init__(
        self,
        c: MobileNetV2Config,
        size_in: int,
        size: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        act: str | None = None,
        eps: float | None = None,
        norm: bool = True,
    ) -> None:
        self.act = c.hidden_act if act is None else act
        activation(self.act)
        self.convolution = Conv(
            size_in,
            size,
            (kernel, kernel),
            not norm,
            stride=stride,
            padding=0 if c.tf_padding else (kernel - 1) // 2 * dilation,
            groups=size if depthwise else 1,
            dilation=dilation,
        )
        self.normalization = BatchNorm(size, c.layer_norm_eps if eps is None else eps) if norm else None
        self.same, self.kernel = c.tf_padding, kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.same:
            steps, spread = self.convolution.stride, self.convolution.dilation
            need = [max(self.kernel - (n % s or s), 0) for n, s in zip(x.shape[1:3], steps, strict=True)]
            around = [(n // 2 * d, (n - n // 2) * d) for n, d in zip(need, spread, strict=True)]
            x = jnp.pad(x, ((0, 0), *around, (0, 0)))
        x = self.convolution(x)
        return activation(self.act)(x if self.normalization is None else self.normalization(x))


class InvertedResidual(eqx.Module):
    """More channels, a depthwise convolution, fewer channels; added to what came in where the shape is the same.

    `shrinks` numbers the layers that make the image smaller: no two of them are alike, so that none is scanned.
    """

    expand_1x1: ConvLayer
    conv_3x3: ConvLayer
    reduce_1x1: ConvLayer
    adds: bool = eqx.field(static=True)
    shrinks: int = eqx.field(static=True)

    def __init__(self, c: MobileNetV2Config, size_in: int, size: int, stride: int, dilation: int, index: int) -> None:
        many = c.rounded(size_in * c.expand_ratio)
        self.expand_1x1 = ConvLayer(c, size_in, many)
        self.conv_3x3 = ConvLayer(c, many, many, 3, stride=stride, dilation=dilation, depthwise=True)
        self.reduce_1x1 = ConvLayer(c, many, size, act="linear")
        self.adds = stride == 1 and size_in == size
        self.shrinks = index + 1 if stride > 1 else 0

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h = self.reduce_1x1(self.conv_3x3(self.expand_1x1(x)))
        return x + h if self.adds else h, cache, {}


class Stem(eqx.Module):
    first_conv: ConvLayer
    expand_1x1: ConvLayer | None
    conv_3x3: ConvLayer
    reduce_1x1: ConvLayer

    def __init__(self, c: MobileNetV2Config, size: int) -> None:
        many = c.wide(32)
        self.first_conv = ConvLayer(c, c.num_channels, many, 3, stride=2)
        self.expand_1x1 = None if c.first_layer_is_expansion else ConvLayer(c, many, many)
        self.conv_3x3 = ConvLayer(c, many, many, 3, depthwise=True)
        self.reduce_1x1 = ConvLayer(c, many, size, act="linear")

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first_conv(x)
        x = x if self.expand_1x1 is None else self.expand_1x1(x)
        return self.reduce_1x1(self.conv_3x3(x))


class MobileNetV2(eqx.Module):
    """Pixels to `last_hidden_state` `(batch, channels, height, width)`, and its mean over places; the hidden states are what
    each layer answers. From `output_stride` on convolutions spread in the place of shrinking the image."""

    conv_stem: Stem
    layer: tuple[InvertedResidual, ...]
    conv_1x1: ConvLayer
    config: MobileNetV2Config = eqx.field(static=True)
    pooled: bool = eqx.field(static=True)

    def __init__(self, c: MobileNetV2Config, *, pooled: bool = True) -> None:
        sizes = [c.wide(n) for n in CHANNELS]
        shrunk, spread, layers = 2, 1, []
        for i, stride in enumerate(STRIDES):
            if shrunk == c.output_stride:
                layers.append(InvertedResidual(c, sizes[i], sizes[i + 1], 1, spread, i))
                spread *= stride
            else:
                layers.append(InvertedResidual(c, sizes[i], sizes[i + 1], stride, 1, i))
                shrunk *= stride
        self.conv_stem, self.layer = Stem(c, sizes[0]), tuple(layers)
        self.conv_1x1 = ConvLayer(c, sizes[-1], c.width)
        self.config, self.pooled = c, pooled

    def __call__(self, context: Context, cache: Any = None, *, pixel_values: jax.Array) -> Output:
        context, first = image_context(context), lambda x: jnp.moveaxis(x, -1, 1)
        x = self.conv_stem(channels_last(pixel_values, dense(self.conv_stem.first_conv.convolution.weight)))
        x, _, trace = fold(self.layer, x, context)
        states = (*trace["hidden_states"][1:], x) if context.wants("hidden_states") else None
        x = self.conv_1x1(x)
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2)).astype(x.dtype) if self.pooled else None
        hidden = None if states is None else tuple(map(first, states))
        return Output(last_hidden_state=first(x), pooler_output=pooled, hidden_states=hidden)


@inputs.register(MobileNetV2)
def _(model: MobileNetV2) -> Inputs:
    return image_inputs(model.config, settings=())


class DeepLab(eqx.Module):
    """What the last layer says of each place beside the mean of all (DeepLabV3+, Chen et al. 2018, arXiv 1802.02611)."""

    conv_pool: ConvLayer
    conv_aspp: ConvLayer
    conv_projection: ConvLayer
    classifier: ConvLayer
    dropout: float = eqx.field(static=True)

    def __init__(self, c: MobileNetV2Config) -> None:
        layer = lambda size_in: ConvLayer(c, size_in, 256, act="relu", eps=1e-5)
        self.conv_pool, self.conv_aspp = layer(c.wide(320)), layer(c.wide(320))
        self.conv_projection = layer(512)
        self.classifier = ConvLayer(c, 256, c.num_labels, act="linear", norm=False)
        self.dropout = c.classifier_dropout_prob

    def __call__(self, states: tuple[jax.Array, ...], context: Context) -> jax.Array:
        x = jnp.moveaxis(states[-1], 1, -1)
        mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(x.dtype)
        each = self.conv_aspp(x)
        both = jnp.concatenate([jnp.broadcast_to(self.conv_pool(mean), each.shape), each], axis=-1)
        h = dropout(self.conv_projection(both), self.dropout, context, 1_000_004)
        return jnp.moveaxis(self.classifier(h), -1, 1)


HEAD = rename("decode_head.{rest}", "segmentation_head.{rest}")
family(
    "mobilenet_v2",
    config=MobileNetV2Config,
    tasks={
        "base": MobileNetV2,
        "image-classification": lambda c: ImageClassifier(
            MobileNetV2(c), pooling="pooler", size=c.width, dropout=c.classifier_dropout_prob
        ),
        "semantic-segmentation": lambda c: SemanticSegmenter(MobileNetV2(c, pooled=False), DeepLab(c)),
    },
    architectures={
        "MobileNetV2Model": "base",
        "MobileNetV2ForImageClassification": "image-classification",
        "MobileNetV2ForSemanticSegmentation": "semantic-segmentation",
    },
    names=lambda model: [HEAD, *head_names(model, MobileNetV2, [], "mobilenet_v2")],
    constants=batches_tracked,
    ignore_tensors=(r"\.num_batches_tracked$",),
    prefix="mobilenet_v2",
)
