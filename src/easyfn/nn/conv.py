"""Convolutions over channels-last arrays, with weights in Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..core.weight import Slot, Weight, dense, dot, shape_of, slots
from .linear import along_last, declare
from .parallel.rows import on_own_rows

_AXES = "DHW"


def _each(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def convolve(
    x: jax.Array,
    weight: jax.Array,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int,
    dilation: tuple[int, ...] | None = None,
) -> jax.Array:
    """The convolution of `x` `(batch, *spatial, in)` with `weight` `(out, in / groups, *kernel)`, summed in float32."""
    spatial = _AXES[-(weight.ndim - 2) :]
    common = jnp.result_type(weight.dtype, x.dtype)

    def one(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            weight,
            stride,
            [(p, p) for p in padding],
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"OI{spatial}", f"N{spatial}C"),
            feature_group_count=groups,
            preferred_element_type=jnp.float32,
        ).astype(common)

    return on_own_rows(one, x.astype(common), weight.astype(common), groups)


class Conv(eqx.Module):
    """A convolution over the spatial axes of `x` `(batch, *spatial, in)`, to `(batch, *spatial, out)`.

    `weight` is torch's: `(out, in / groups, *kernel)`; `bias` `(out,)`. The channels come last, where linear layers and norms
    want them. `padding` is how many zeros are added on both sides of each axis, `dilation` how far apart the taps are.
    """

    weight: Weight
    bias: Weight | None
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: tuple[int, ...] = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    dilation: tuple[int, ...] = eqx.field(static=True)
    axes: tuple[str | None, ...] = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        bias: bool = True,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
        axes: tuple[str | None, str | None] = ("embed", None),
    ) -> None:
        rank = len(kernel)
        self.weight = declare(out_channels, in_channels // groups, *kernel)
        self.bias = declare(out_channels) if bias else None
        self.stride = _each(stride, rank)
        self.padding = _each(padding, rank)
        self.groups = groups
        self.dilation = _each(dilation, rank)
        self.axes = (*axes, *(None,) * rank)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = shape_of(self.weight)[2:]
        if self.stride == kernel and self.groups == 1 and not any(self.padding):
            return self._by_patches(x, kernel)
        return self._biased(convolve(x, dense(self.weight), self.stride, self.padding, self.groups, self.dilation))

    def _by_patches(self, x: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
        """Patches that do not overlap: one matrix product, which is faster than a convolution on every backend."""
        counts = tuple(n // k for n, k in zip(x.shape[1:-1], kernel, strict=True))
        x = x[(slice(None), *(slice(0, n * k) for n, k in zip(counts, kernel, strict=True)))]
        split = [x.shape[0], *(m for pair in zip(counts, kernel, strict=True) for m in pair), x.shape[-1]]
        rank = len(kernel)
        order = [0, *range(1, 2 * rank, 2), 2 * rank + 1, *range(2, 2 * rank + 1, 2)]
        rows = x.reshape(split).transpose(order).reshape(x.shape[0], *counts, -1)
        weight = dense(self.weight)
        return self._biased(dot(weight.reshape(weight.shape[0], -1), rows))

    def _biased(self, y: jax.Array) -> jax.Array:
        return y if self.bias is None else y + along_last(dense(self.bias).astype(y.dtype), y)


def max_pool(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """The largest of each square of `x` `(batch, height, width, channels)`; what is added around it is never the largest."""
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    low = np.asarray(-np.inf, x.dtype)  # no array of JAX: of a traced one nobody knows that it is the lowest
    return jax.lax.reduce_window(x, low, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), pad)


def within_documents(conv: Conv, x: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """A convolution of odd size along the sequence of `x` `(batch, seq, in)`, to `(batch, seq, out)`, in which a token
    meets only those of its own document: one product of all taps, of which those in other segments are zeros."""
    weight = dense(conv.weight)
    out, size, half = weight.shape[0], weight.shape[2], weight.shape[2] // 2
    length = x.shape[1]
    pad = [(0, 0), (half, half)]
    padded, segments = jnp.pad(x, [*pad, (0, 0)]), jnp.pad(segment_ids, pad, constant_values=-1)

    def tap(n: int) -> jax.Array:
        same = segments[:, n : n + length] == segment_ids
        return jnp.where(same[..., None], padded[:, n : n + length], jnp.zeros((), x.dtype))

    taps = jnp.stack([tap(n) for n in range(size)], axis=-1)  # [batch, seq, in, size]
    if conv.groups == 1:
        return conv._biased(dot(weight.reshape(out, -1), taps.reshape(*x.shape[:2], -1)))
    grouped = taps.reshape(*x.shape[:2], conv.groups, -1)
    weight = weight.reshape(conv.groups, out // conv.groups, -1)
    y = jnp.einsum("bsgi,goi->bsgo", grouped, weight, preferred_element_type=jnp.float32)
    return conv._biased(y.reshape(*x.shape[:2], out).astype(x.dtype))


@slots.register(Conv)
def _(conv: Conv) -> dict[str, Slot]:
    return {"weight": Slot("conv", conv.axes), "bias": Slot("bias", conv.axes[:1], "zeros")}
