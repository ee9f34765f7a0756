"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545): depthwise convolutions in the place of attention, in stages that shrink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import CommonFields, Size, alias
from ..core.weight import Slot, Weight, dense, slots
from ..inputs.image import image_inputs
from ..inputs.statement import Inputs, inputs
from ..names.rules import rename
from ..nn import Context, Conv, LayerNorm, Linear, Output, along_last, declare
from ..nn.activation import activation
from ..nn.image_heads import ImageClassifier
from ..nn.vision import channels_last, drop_path, image_context, pair
from ..registry.family import family
from .vision import BACKBONE, head_names, run_stages


@dataclass(frozen=True, kw_only=True)
class ConvNextFields(CommonFields):
    """The keys that both ConvNeXt have."""

    num_channels: Size = 3
    patch_size: int | tuple[int, ...] = 4
    num_stages: int = 4
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    drop_path_rate: float | int = 0.0
    image_size: int | tuple[int, ...] = 224
    num_hidden_layers: ClassVar = alias("num_stages")


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig(ConvNextFields):
    """The keys of a ConvNeXt `config.json`."""

    model_type: ClassVar[str] = "convnext"
    layer_scale_init_value: float | int = 1e-6


class ConvNextLayer(eqx.Module):
    """`x + scale * pwconv2(grn(act(pwconv1(norm(dwconv(x))))))` on `(batch, height, width, channels)`.

    The first has a `scale`, which begins at the number given where that is not 0, and the second a `grn(size)`.
    """

    dwconv: Conv
    layernorm: LayerNorm
    pwconv1: Linear
    grn: Any
    pwconv2: Linear
    layer_scale_parameter: Weight | None
    act: str = eqx.field(static=True)
    start: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __init__(self, c: ConvNextFields, size: int, rate: float, *, scale: float = 0.0, grn: Any = None) -> None:
        self.dwconv = Conv(size, size, (7, 7), padding=3, groups=size)
        self.layernorm = LayerNorm(size, 1e-6)
        self.pwconv1 = Linear(size, 4 * size, True, axes=("mlp", "embed"))
        self.grn = None if grn is None else grn(4 * size)
        self.pwconv2 = Linear(4 * size, size, True, axes=("embed", "mlp"))
        self.layer_scale_parameter = declare(size) if scale > 0 else None
        self.act, self.start, self.rate = c.hidden_act, float(scale), rate

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        h = self.layernorm(self.dwconv(x))
        h = activation(self.act)(self.pwconv1(h))
        h = self.pwconv2(h if self.grn is None else self.grn(h))
        if self.layer_scale_parameter is not None:
            h = h * along_last(dense(self.layer_scale_parameter).astype(h.dtype), h)
        return x + drop_path(h, self.rate, context, 1), cache, {}


@slots.register(ConvNextLayer)
def _(layer: ConvNextLayer) -> dict[str, Slot]:
    full = lambda key, shape, dtype: jnp.full(shape, layer.start, dtype)
    return {"layer_scale_parameter": Slot("norm", ("norm",), full)}


class ConvNextStage(eqx.Module):
    """A norm and a convolution that shrink the image (not in the first stage), then layers."""

    downsampling_layer: tuple[Any, ...]
    layers: tuple[Any, ...]


class ConvNextEmbeddings(eqx.Module):
    patch_embeddings: Conv
    layernorm: LayerNorm


class ConvNext(eqx.Module):
    """Pixels to `last_hidden_state` `(batch, channels, height, width)`, and its mean over places, normed."""

    embeddings: ConvNextEmbeddings
    stages: tuple[ConvNextStage, ...]
    layernorm: LayerNorm
    config: ConvNextFields = eqx.field(static=True)

    def __init__(self, c: ConvNextFields, **own: Any) -> None:
        """`own` are the arguments of a [`ConvNextLayer`][easyfn.models.convnext.ConvNextLayer] beside size and rate."""
        sizes, patch = c.hidden_sizes, pair(c.patch_size)
        rates = np.split(np.linspace(0, c.drop_path_rate, sum(c.depths)), np.cumsum(c.depths)[:-1])

        def stage(i: int) -> ConvNextStage:
            down = () if i == 0 else (LayerNorm(sizes[i - 1], 1e-6), Conv(sizes[i - 1], sizes[i], (2, 2), stride=2))
            return ConvNextStage(down, tuple(ConvNextLayer(c, sizes[i], float(r), **own) for r in rates[i]))

        self.embeddings = ConvNextEmbeddings(
            Conv(c.num_channels, sizes[0], patch, stride=patch), LayerNorm(sizes[0], 1e-6)
        )
        self.stages = tuple(stage(i) for i in range(c.num_stages))
        self.layernorm = LayerNorm(sizes[-1], c.layer_norm_eps)
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, pixel_values: jax.Array) -> Output:
        x = channels_last(pixel_values, dense(self.embeddings.patch_embeddings.weight))
        x = self.embeddings.layernorm(self.embeddings.patch_embeddings(x))
        x, out = run_stages(self.stages, x, image_context(context), _shrunk)
        pooled = self.layernorm(jnp.mean(x.astype(jnp.float32), axis=(1, 2)).astype(x.dtype))
        return out.replace(pooler_output=pooled)


def _shrunk(stage: ConvNextStage, x: jax.Array) -> jax.Array:
    for part in stage.downsampling_layer:
        x = part(x)
    return x


@inputs.register(ConvNext)
def _(model: ConvNext) -> Inputs:
    return image_inputs(model.config, settings=())


def convnext_family(name: str, config: type, build: Callable[[Any], ConvNext]) -> None:
    """Registers a ConvNeXt whose transformers classes begin with `name`."""
    kind = config.model_type  # type: ignore[attr-defined]
    rules = [rename("stages.{rest}", "encoder.stages.{rest}")]
    family(
        kind,
        config=config,
        tasks={
            "base": build,
            "image-classification": lambda c: ImageClassifier(build(c), pooling="pooler", size=c.hidden_sizes[-1]),
        },
        architectures={f"{name}Model": "base", f"{name}ForImageClassification": "image-classification"},
        names=lambda model: head_names(model, ConvNext, rules, kind),
        # of the backbone for detection and segmentation
        ignore=BACKBONE,
        prefix=kind,
    )


convnext_family("ConvNext", ConvNextConfig, lambda c: ConvNext(c, scale=c.layer_scale_init_value))
