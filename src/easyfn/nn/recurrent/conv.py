"""The short causal convolution of recurrent layers."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ...core.weight import Slot, Weight, dense, shape_of, slots
from ..linear import along_last, declare
from .state import Documents, RecurrentState


class CausalConv1d(eqx.Module):
    """A depthwise causal convolution over the sequence: every channel mixes its own last `kernel` inputs, or every
    `dilation`-th of them."""

    weight: Weight  # [channels, 1, kernel], as torch's Conv1d stores it
    bias: Weight | None
    axes: tuple[str | None, ...] = eqx.field(static=True)
    dilation: int = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        kernel: int,
        bias: bool = True,
        *,
        axes: tuple[str | None, ...] = ("mlp", None, None),
        dilation: int = 1,
    ):
        self.weight = declare(channels, 1, kernel)
        self.bias = declare(channels) if bias else None
        self.axes = axes
        self.dilation = dilation

    def __call__(self, x: jax.Array, documents: Documents, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`x` `(batch, seq, channels)` after the inputs in `state`; returns float32 and the next state."""
        weight = dense(self.weight).astype(jnp.float32)[:, 0]

        def convolve(x: jax.Array, index: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Padding only at the end of each row."""
            width, length = state.shape[1], x.shape[1]
            inputs = jnp.concatenate([state.astype(x.dtype), x], axis=1)
            index = jnp.concatenate([jnp.zeros_like(index, shape=(x.shape[0], width)), index], axis=1)
            y = jnp.zeros(x.shape, jnp.float32)
            for number in range(weight.shape[1]):
                j = number * self.dilation
                same = index[:, j : j + length] == index[:, width:]
                y = (
                    y
                    + jnp.where(same[..., None], inputs[:, j : j + length].astype(jnp.float32), 0.0)
                    * weight[None, None, :, number]
                )
            count = jnp.sum(real, axis=1)
            kept = count[:, None] + jnp.arange(width)[None]  # the last `width` inputs before the padding
            same = jnp.take_along_axis(index, kept, axis=1) == index[:, -1:]
            new = jnp.take_along_axis(inputs, kept[..., None], axis=1)
            return y, jnp.where(same[..., None], new, jnp.zeros_like(new))

        def packed(x: jax.Array, index: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Padding anywhere: the tokens move to the front of their rows, in their order, and back."""
            order = jnp.argsort(~real, axis=1, stable=True)
            move = lambda a, to: jnp.take_along_axis(a, to.reshape(to.shape + (1,) * (a.ndim - 2)), axis=1)
            last = jnp.where(move(real, order), move(index, order), index[:, -1:])
            y, new = convolve(move(x, order), last, real)
            return move(y, jnp.argsort(order, axis=1)), new

        x = jnp.where(documents.real[..., None], x, jnp.zeros_like(x))
        arguments = (x, documents.index, documents.real)
        if x.shape[1] == 1:
            y, new = convolve(*arguments)
        else:
            before = jnp.any(documents.real[:, 1:] & ~documents.real[:, :-1])  # a token after padding
            y, new = jax.lax.cond(before, packed, convolve, *arguments)
        if self.bias is not None:
            y = y + along_last(dense(self.bias).astype(jnp.float32), y)
        return y, new.astype(state.dtype)


def before_first(conv: CausalConv1d | None, batch_size: int, dtype: Any, *ssm: int) -> RecurrentState:
    """The state before the first token: no inputs of the convolution `(batch, (kernel - 1) * dilation, channels)`, and zeros
    of `(batch, *ssm)`. Of layers in a stacked run, for one of them."""
    inputs = None
    if conv is not None:
        if not jnp.issubdtype(dtype, jnp.floating):  # int8 is for keys and values: a state is added to at every token
            dtype = dense(conv.weight).dtype
        shape = shape_of(conv.weight)
        inputs = jnp.zeros((batch_size, (shape[-1] - 1) * conv.dilation, shape[-3]), dtype)
    memory = jnp.zeros((batch_size, *ssm), jnp.float32) if ssm else None
    return RecurrentState(inputs, memory, jnp.zeros((batch_size,), jnp.int32))


@slots.register(CausalConv1d)
def _(conv: CausalConv1d) -> dict[str, Slot]:
    def uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        bound = shape[-1] ** -0.5  # torch's own default for a convolution
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound).astype(dtype)

    return {"weight": Slot("conv", conv.axes, uniform), "bias": Slot("bias", conv.axes[:1], "zeros")}
