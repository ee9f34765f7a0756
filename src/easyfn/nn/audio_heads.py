"""Heads on encoders of sound: a class for a recording or for each of its frames, and a vector that tells who speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..core.weight import Slot, Weight, dense, slots
from .context import Context
from .linear import Linear, declare
from .output import Output
from .seq2seq import source_segments


def real_frames(head: Any, attention_mask: Any, frames: int) -> jax.Array:
    """1 for the frames of a sound that are no padding, `(batch, frames)`, from the mask of its samples."""
    segments = (jnp.asarray(attention_mask) != 0).astype(jnp.int32)
    return source_segments(head.model, segments, frames)


def _shares(config: Any) -> Weight | None:
    return declare(config.num_hidden_layers + 1) if config.use_weighted_layer_sum else None


def _heard(head: Any, context: Context, cache: Any, inputs: Mapping[str, Any]) -> tuple[Output, jax.Array]:
    """What the encoder of a head answers, and its last hidden states or a learned mean of those of all layers."""
    asked = context.outputs
    if head.layer_weights is None:
        out = head.model(context, cache, **inputs)
        return out, out.last_hidden_state
    out = head.model(context.replace(outputs=asked | {"hidden_states"}), cache, **inputs)
    share = jax.nn.softmax(dense(head.layer_weights).astype(jnp.float32))
    hidden = sum(share[i] * x for i, x in enumerate(out.hidden_states)).astype(out.last_hidden_state.dtype)
    return out.replace(hidden_states=out.hidden_states if "hidden_states" in asked else None), hidden


class AudioClassifier(eqx.Module):
    """One answer for each recording: `logits` `(batch, num_labels)`, from the mean over its frames of a projection of the
    hidden states, or (`weighted`) of a learned mean of those of all layers.

    `config` has `classifier_proj_size`, `use_weighted_layer_sum` and `num_hidden_layers`.
    """

    model: Any
    layer_weights: Weight | None
    projector: Linear
    classifier: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        c = model.config
        self.model = model
        self.layer_weights = _shares(c)
        self.projector = Linear(c.hidden_size, c.classifier_proj_size, True, axes=(None, "embed"))
        self.classifier = Linear(c.classifier_proj_size, c.num_labels, True, role="head")
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out, hidden = _heard(self, context, cache, inputs)
        dtype, hidden = hidden.dtype, self.projector(hidden).astype(jnp.float32)
        real = source_segments(self.model, context.segment_ids, hidden.shape[1])[..., None] > 0
        mean = jnp.sum(jnp.where(real, hidden, 0.0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        return out.replace(logits=self.classifier(mean.astype(dtype)))


class AudioFrameClassifier(eqx.Module):
    """An answer for each frame: `logits` `(batch, frames, num_labels)`, who speaks when for instance."""

    model: Any
    layer_weights: Weight | None
    classifier: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        c = model.config
        self.model = model
        self.layer_weights = _shares(c)
        self.classifier = Linear(c.hidden_size, c.num_labels, True, role="head")
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out, hidden = _heard(self, context, cache, inputs)
        return out.replace(logits=self.classifier(hidden))


class TimeDelayLayer(eqx.Module):
    """A convolution over frames, `dilation` apart, whose weight is `(out, taps * in)`, and `relu`."""

    kernel: Linear
    taps: int = eqx.field(static=True)
    dilation: int = eqx.field(static=True)

    def windows(self, x: jax.Array) -> jax.Array:
        """`(batch, frames, taps, ...)`: what each frame of the answer reads; there are fewer of them."""
        count = x.shape[1] - self.dilation * (self.taps - 1)
        if count < 1:
            raise ValueError(
                f"{x.shape[1]} frames are too few: a time-delay layer of {self.taps} taps, {self.dilation} apart, reads "
                f"{self.dilation * (self.taps - 1) + 1}; give longer recordings"
            )
        return jnp.stack([x[:, i * self.dilation :][:, :count] for i in range(self.taps)], axis=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        windows = self.windows(x)
        return jax.nn.relu(self.kernel(windows.reshape(*windows.shape[:2], -1)))


class SpeakerMargin(eqx.Module):
    """A direction for each speaker, `weight` `(embed, num_labels)`: what the loss compares with."""

    weight: Weight


class SpeakerEmbedding(eqx.Module):
    """A vector for each recording that tells who speaks (Snyder et al. 2018): `embeddings`, and `logits`, which are compared,
    `(batch, xvector_output_dim)`. Time-delay layers, then the mean and the standard deviation of the frames that read no
    padding, and two projections."""

    model: Any
    layer_weights: Weight | None
    projector: Linear
    tdnn: tuple[TimeDelayLayer, ...]
    feature_extractor: Linear
    classifier: Linear
    objective: SpeakerMargin
    config: Any = eqx.field(static=True)

    def __init__(self, model: Any) -> None:
        c = model.config
        if not len(c.tdnn_dim) == len(c.tdnn_kernel) == len(c.tdnn_dilation):
            raise ValueError(
                f"{c.model_type}: tdnn_dim, tdnn_kernel and tdnn_dilation name {len(c.tdnn_dim)}, {len(c.tdnn_kernel)} and "
                f"{len(c.tdnn_dilation)} layers"
            )
        self.model = model
        self.layer_weights = _shares(c)
        self.projector = Linear(c.hidden_size, c.tdnn_dim[0], True, axes=(None, "embed"))
        widths = (c.tdnn_dim[0], *c.tdnn_dim)
        self.tdnn = tuple(
            TimeDelayLayer(Linear(widths[i] * taps, widths[i + 1], True, axes=(None, None)), taps, c.tdnn_dilation[i])
            for i, taps in enumerate(c.tdnn_kernel)
        )
        size = c.xvector_output_dim
        self.feature_extractor = Linear(2 * widths[-1], size, True, axes=(None, None))
        self.classifier = Linear(size, size, True, axes=(None, None))
        self.objective = SpeakerMargin(declare(size, c.num_labels))
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out, hidden = _heard(self, context, cache, inputs)
        real = source_segments(self.model, context.segment_ids, hidden.shape[1]) > 0
        hidden = self.projector(hidden)
        for layer in self.tdnn:
            hidden, real = layer(hidden), jnp.all(layer.windows(real), axis=2)
        shown, x = real[..., None], hidden.astype(jnp.float32)
        count = jnp.sum(shown, axis=1)
        mean = jnp.sum(jnp.where(shown, x, 0.0), axis=1) / count
        spread = jnp.sqrt(jnp.sum(jnp.where(shown, (x - mean[:, None]) ** 2, 0.0), axis=1) / (count - 1))
        vectors = self.feature_extractor(jnp.concatenate([mean, spread], axis=-1).astype(hidden.dtype))
        return out.replace(embeddings=vectors, logits=self.classifier(vectors))


def _even(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.full(shape, 1.0 / shape[0], dtype)


@slots.register(AudioClassifier)
@slots.register(AudioFrameClassifier)
@slots.register(SpeakerEmbedding)
def _(model: Any) -> dict[str, Slot]:
    return {"layer_weights": Slot("other", (None,), _even)}


@slots.register(SpeakerMargin)
def _(margin: SpeakerMargin) -> dict[str, Slot]:
    return {"weight": Slot("other", (None, None), jax.random.normal)}
