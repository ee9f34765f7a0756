"""ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808): ConvNeXt whose channels compete, in the place of scaled branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from ..nn import declare
from .convnext import ConvNext, ConvNextFields, convnext_family


@dataclass(frozen=True, kw_only=True)
class ConvNextV2Config(ConvNextFields):
    """The keys of the `config.json` of a ConvNeXt V2."""

    model_type: ClassVar[str] = "convnextv2"


class ResponseNorm(eqx.Module):
    """`x + weight * x * share + bias`: the share of a channel is its length over all places by the mean of all channels'."""

    weight: Weight
    bias: Weight

    def __init__(self, size: int) -> None:
        self.weight, self.bias = declare(1, 1, 1, size), declare(1, 1, 1, size)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(h * h, axis=(1, 2), keepdims=True))
        share = length / (jnp.mean(length, axis=-1, keepdims=True) + 1e-6)
        weight, bias = (dense(w).astype(jnp.float32) for w in (self.weight, self.bias))
        return (h + weight * h * share + bias).astype(x.dtype)


@slots.register(ResponseNorm)
def _(norm: ResponseNorm) -> dict[str, Slot]:
    axes = (None, None, None, "norm")
    return {"weight": Slot("norm", axes, "zeros"), "bias": Slot("bias", axes, "zeros")}


convnext_family("ConvNextV2", ConvNextV2Config, lambda c: ConvNext(c, grn=ResponseNorm))
