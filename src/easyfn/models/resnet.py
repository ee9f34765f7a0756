"""ResNet (He et al. 2015, arXiv 1512.03385): convolutions that learn what to add to their input, in stages that shrink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.fields import CommonFields, Size
from ..core.stack import one_by_one
from ..core.weight import dense
from ..inputs.image import image_inputs
from ..inputs.statement import Inputs, inputs
from ..names.rules import rename
from ..nn import BatchNorm, Context, Conv, Output
from ..nn.activation import activation
from ..nn.conv import max_pool
from ..nn.image_heads import ImageClassifier
from ..nn.vision import channels_last, image_context
from ..registry.family import family
from .vision import BACKBONE, batches_tracked, head_names, run_stages


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(CommonFields):
    """The keys of a ResNet `config.json`."""

    model_type: ClassVar[str] = "resnet"
    num_channels: Size = 3
    embedding_size: Size = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False


class ConvNorm(eqx.Module):
    """`act(norm(convolution(x)))` on `(batch, height, width, channels)`."""

    convolution: Conv
    normalization: BatchNorm
    act: str = eqx.field(static=True)

    def __init__(self, size_in: int, size: int, kernel: int = 3, stride: int = 1, act: str = "relu") -> None:
        activation(act)
        self.convolution = Conv(size_in, size, (kernel, kernel), False, stride=stride, padding=kernel // 2)
        self.normalization = BatchNorm(size)
        self.act = act

    def __call__(self, x: jax.Array) -> jax.Array:
        return activation(self.act)(self.normalization(self.convolution(x)))


class ResNetLayer(eqx.Module):
    """`act(shortcut(x) + layer(x))`: what is added is three convolutions, the middle one of a quarter of the channels, or
    two. The shortcut is `x` itself where its shape does not change."""

    shortcut: ConvNorm | None
    layer: tuple[ConvNorm, ...]
    act: str = eqx.field(static=True)

    def __init__(self, c: ResNetConfig, size_in: int, size: int, stride: int = 1) -> None:
        changes = size_in != size or stride != 1
        self.shortcut = ConvNorm(size_in, size, 1, stride, "linear") if changes else None
        if c.layer_type == "basic":
            self.layer = (ConvNorm(size_in, size, 3, stride), ConvNorm(size, size, 3, act="linear"))
        else:
            first, middle = (stride, 1) if c.downsample_in_bottleneck else (1, stride)
            inner = size // 4
            self.layer = (
                ConvNorm(size_in, inner, 1, first),
                ConvNorm(inner, inner, 3, middle),
                ConvNorm(inner, size, 1, act="linear"),
            )
        self.act = c.hidden_act

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h = x
        for part in one_by_one(self.layer):
            h = part(h)
        return activation(self.act)(h + (x if self.shortcut is None else self.shortcut(x))), cache, {}


class ResNetStage(eqx.Module):
    layers: tuple[ResNetLayer, ...]


class ResNet(eqx.Module):
    """Pixels to `last_hidden_state` `(batch, channels, height, width)`, and its mean over places, `(batch, channels, 1, 1)`."""

    embedder: ConvNorm
    stages: tuple[ResNetStage, ...]
    config: ResNetConfig = eqx.field(static=True)

    def __init__(self, c: ResNetConfig) -> None:
        sizes: Sequence[int] = (c.embedding_size, *c.hidden_sizes)

        def stage(i: int) -> ResNetStage:
            first = ResNetLayer(c, sizes[i], sizes[i + 1], 2 if i or c.downsample_in_first_stage else 1)
            return ResNetStage((first, *(ResNetLayer(c, sizes[i + 1], sizes[i + 1]) for _ in range(c.depths[i] - 1))))

        self.embedder = ConvNorm(c.num_channels, c.embedding_size, 7, 2, c.hidden_act)
        self.stages = tuple(stage(i) for i in range(len(c.hidden_sizes)))
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, pixel_values: jax.Array) -> Output:
        x = channels_last(pixel_values, dense(self.embedder.convolution.weight))
        x, out = run_stages(self.stages, max_pool(self.embedder(x), 3, 2, 1), image_context(context))
        pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2), keepdims=True).astype(x.dtype)
        return out.replace(pooler_output=jnp.moveaxis(pooled, -1, 1))


@inputs.register(ResNet)
def _(model: ResNet) -> Inputs:
    return image_inputs(model.config, settings=())


RULES = [
    rename("embedder.{rest}", "embedder.embedder.{rest}"),
    rename("stages.{rest}", "encoder.stages.{rest}"),
]


def _names(model: Any) -> list[Any]:
    return [rename("classifier.{rest}", "classifier.1.{rest}"), *head_names(model, ResNet, RULES, "resnet")]


family(
    "resnet",
    config=ResNetConfig,
    tasks={
        "base": ResNet,
        "image-classification": lambda c: ImageClassifier(ResNet(c), pooling="pooler", size=c.hidden_sizes[-1]),
    },
    architectures={"ResNetModel": "base", "ResNetForImageClassification": "image-classification"},
    names=_names,
    constants=batches_tracked,
    # of the backbone for detection and segmentation
    ignore=BACKBONE,
    ignore_tensors=(r"\.num_batches_tracked$",),
    prefix="resnet",
)
