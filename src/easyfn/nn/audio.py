"""What models of sound are made of: frames that see each other, their positions by a convolution, and CTC."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from .cache.cache import order_of
from .context import Context, dropout
from .conv import convolve
from .linear import Linear, along_last, declare
from .output import Output


def frame_context(context: Context, segments: jax.Array) -> Context:
    """The context of layers over frames of sound that all see each other; `segments` `(batch, frames)`, 0 for padding."""
    order = order_of(segments)
    return context.replace(
        position_ids=order,
        segment_ids=segments,
        slots=jnp.arange(segments.shape[1], dtype=jnp.int32),
        order=order,
        cached_segment_ids=None,
        table=None,
        rope=None,
        bias=None,
        encoder=None,
        causal=False,
    )


class WeightNormConv(eqx.Module):
    """A convolution over time whose weight is `weight_g * weight_v / norm(weight_v)` (Salimans and Kingma 2016), with one
    norm for each place of the kernel: `weight_g` is `(1, 1, kernel)`, `weight_v` `(out, in / groups, kernel)`.

    `x` is `(batch, frames, in)`; the result has as many frames.
    """

    weight_g: Weight
    weight_v: Weight
    bias: Weight
    groups: int = eqx.field(static=True)

    def __init__(self, size: int, kernel: int, groups: int) -> None:
        if size % groups:
            raise ValueError(f"num_conv_pos_embedding_groups={groups} does not divide hidden_size={size}")
        self.weight_g = declare(1, 1, kernel)
        self.weight_v = declare(size, size // groups, kernel)
        self.bias = declare(size)
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        v = dense(self.weight_v).astype(jnp.float32)
        size = jnp.sqrt(jnp.sum(jnp.square(v), axis=(0, 1), keepdims=True))
        weight = (dense(self.weight_g).astype(jnp.float32) * (v / size)).astype(x.dtype)
        y = convolve(x, weight, (1,), (weight.shape[2] // 2,), self.groups)[:, : x.shape[1]]
        return y + along_last(dense(self.bias).astype(y.dtype), y)


@slots.register(WeightNormConv)
def _(conv: WeightNormConv) -> dict[str, Slot]:
    return {
        "weight_g": Slot("norm", (None, None, None), "ones"),
        "weight_v": Slot("conv", ("embed", None, None)),
        "bias": Slot("bias", ("embed",), "zeros"),
    }


class ChannelNorm(eqx.Module):
    """Every channel of `x` `(batch, frames, channels)` normed over the frames of its recording, then scaled and moved:
    torch's `GroupNorm` with a group for each channel."""

    weight: Weight
    bias: Weight

    def __init__(self, channels: int) -> None:
        self.weight, self.bias = declare(channels), declare(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=1, keepdims=True) + 1e-5)
        weight, bias = (along_last(dense(w).astype(jnp.float32), h) for w in (self.weight, self.bias))
        return (h * weight + bias).astype(x.dtype)


@slots.register(ChannelNorm)
def _(norm: ChannelNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", (None,), "ones"), "bias": Slot("norm", (None,), "zeros")}


class CTC(eqx.Module):
    """Scores over a vocabulary for each frame, `logits` `(batch, frames, vocab)`, of which one token, the config's
    `pad_token_id`, is the blank (Graves et al. 2006)."""

    model: Any
    lm_head: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        c = model.config
        self.model = model
        self.lm_head = Linear(c.hidden_size, c.vocab_size, True, axes=("vocab", "embed"), role="head")
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        hidden = dropout(out.last_hidden_state, self.config.final_dropout, context, 1_000_005)
        return out.replace(logits=self.lm_head(hidden))
