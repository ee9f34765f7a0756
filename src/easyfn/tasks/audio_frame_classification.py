"""A label for every frame of a sound: who speaks when, for instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..forward.forward import forward
from ..nn.audio_heads import AudioFrameClassifier, real_frames
from ..nn.context import Runtime
from .cross_entropy import LossConfig, Metrics, check_shape, cross_entropy
from .loss import compute_loss, labelled
from .task import Task, task

TASK = Task(
    "audio-frame-classification",
    auto="AutoModelForAudioFrameClassification",
    classes=("ForAudioFrameClassification",),
    labels={"labels": "token"},
)


@task.register(AudioFrameClassifier)
def _(model: AudioFrameClassifier) -> str:
    return TASK.name


@compute_loss.register(AudioFrameClassifier)
def frame_loss(
    model: AudioFrameClassifier,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of each frame's scores and its label: `labels` `(batch, frames)`, integers, or `(batch, frames,
    num_labels)`, one-hot, as transformers has them. Frames of padding do not count."""
    inputs, labels = labelled(model, batch, cfg)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    if labels.ndim == 3:
        check_shape(labels, out.logits.shape)
        labels = jnp.argmax(labels, axis=-1)
    check_shape(labels, out.logits.shape[:2])
    mask = inputs.get("attention_mask")
    real = None if mask is None else real_frames(model, mask, labels.shape[1]) > 0
    return cross_entropy(out.logits, labels, real, cfg)
