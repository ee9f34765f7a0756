"""What reads the hidden states of an image: classifiers, one vector for an image, what masked patches were."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .context import Context, dropout
from .conv import Conv
from .linear import Linear
from .norm import LayerNorm
from .output import Output


class ImageClassifier(eqx.Module):
    """One answer per image: `logits` `(batch, num_labels)`, a linear layer on what `pooling` makes of the hidden states.

    `cls` takes the first token, `mean` the mean of the patches after `extra` tokens (of those that `pixel_attention_mask` names,
    where a model reads such a mask), `cls_mean` both one after the other, `places` the mean of all places of hidden states
    `(batch, channels, height, width)`, and `pooler` the model's `pooler_output`.
    """

    model: Any
    classifier: Linear
    config: Any = eqx.field(static=True)
    pooling: str = eqx.field(static=True)
    extra: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        config: Any = None,
        *,
        pooling: str = "cls",
        size: int | None = None,
        extra: int = 1,
        dropout: float = 0.0,
    ) -> None:
        config = model.config if config is None else config  # of the whole, where the model is one of its towers
        width = size or model.config.hidden_size * (2 if pooling == "cls_mean" else 1)
        self.model = model
        self.classifier = Linear(width, config.num_labels, True, axes=(None, "embed"), role="head")
        self.config = config
        self.pooling = pooling
        self.extra = extra
        self.dropout = dropout

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        seen = inputs.get("pixel_attention_mask")
        x = dropout(pool_image(out, self.pooling, self.extra, seen), self.dropout, context, 1_000_004)
        return out.replace(logits=self.classifier(x))


def pool_image(out: Output, pooling: str, extra: int = 1, seen: Any = None) -> jax.Array:
    """One vector `(batch, embed)` for each image, see `ImageClassifier`."""
    x: Any = out.pooler_output if pooling == "pooler" else out.last_hidden_state
    if pooling == "pooler":
        return x.reshape(x.shape[0], -1)
    if pooling == "places":
        return jnp.mean(x.astype(jnp.float32), axis=(2, 3)).astype(x.dtype)
    real = None if seen is None else (jnp.asarray(seen) != 0)[:, extra:, None]
    mean = lambda: jnp.mean(x[:, extra:].astype(jnp.float32), axis=1, where=real).astype(x.dtype)
    if pooling == "cls":
        return x[:, 0]
    return mean() if pooling == "mean" else jnp.concatenate([x[:, 0], mean()], axis=-1)


class MaskedPatches(eqx.Module):
    """Which of `vocab_size` visual words each patch is: `logits` `(batch, patches, vocab_size)`, behind a norm (BEiT)."""

    model: Any
    layernorm: LayerNorm
    lm_head: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        c = model.config
        self.model = model
        self.layernorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, True, axes=("vocab", "embed"), role="head")
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        x: Any = out.last_hidden_state
        return out.replace(logits=self.lm_head(self.layernorm(x[:, 1:])))


class MaskedPixels(eqx.Module):
    """The pixels of masked patches: `reconstruction` `(batch, channels, height, width)`, of every place a square of
    `encoder_stride` pixels (SimMIM, Xie et al. 2021, arXiv 2111.09886). Square images only, as transformers has it.

    `extra` tokens of the hidden states, `size` wide, stand before the patches.
    """

    model: Any
    decoder: tuple[Conv, ...]
    config: Any = eqx.field(static=True)
    extra: int = eqx.field(static=True)

    def __init__(self, model: Any, size: int, *, extra: int = 1) -> None:
        c = model.config
        self.model = model
        self.decoder = (Conv(size, c.encoder_stride**2 * c.num_channels, (1, 1)),)
        self.config = c
        self.extra = extra

    def __call__(self, context: Context, cache: Any = None, *, pixel_values: jax.Array, **inputs: Any) -> Output:
        out = self.model(context, cache, pixel_values=pixel_values, **inputs)
        x: Any = out.last_hidden_state
        x = x[:, self.extra :]
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1] or pixel_values.shape[-2] != pixel_values.shape[-1]:
            raise ValueError(
                f"an image of {pixel_values.shape[-2]} x {pixel_values.shape[-1]} pixels: pixels of masked patches are "
                "told of square images"
            )
        one, channels = self.config.encoder_stride, self.config.num_channels
        x = self.decoder[0](x.reshape(x.shape[0], side, side, x.shape[-1]))
        x = x.reshape(x.shape[0], side, side, channels, one, one).transpose(0, 3, 1, 4, 2, 5)
        return out.replace(reconstruction=x.reshape(x.shape[0], channels, side * one, side * one))


class SemanticSegmenter(eqx.Module):
    """What each place shows: `logits` `(batch, num_labels, height, width)`, that `decode_head(states, context)` makes of the
    model's hidden states. The places are as coarse as the head has them; the loss resamples them to the pixels of labels.
    """

    model: Any
    decode_head: Any
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any, decode_head: Any) -> None:
        self.model, self.decode_head = model, decode_head
        self.config = model.config

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context.replace(outputs=context.outputs | {"hidden_states"}), cache, **inputs)
        logits = self.decode_head(out.hidden_states, context)
        return out.replace(logits=logits, hidden_states=out.hidden_states if context.wants("hidden_states") else None)
