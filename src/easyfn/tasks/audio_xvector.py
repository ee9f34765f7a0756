"""Who speaks, as a vector: recordings of one speaker are near to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.weight import dense
from ..forward.forward import forward
from ..nn.audio_heads import SpeakerEmbedding
from ..nn.context import Runtime
from .cross_entropy import LossConfig, Metrics, check_shape, cross_entropy
from .loss import compute_loss, labelled
from .task import Task, task

TASK = Task("audio-xvector", auto="AutoModelForAudioXVector", classes=("ForXVector",), labels={"labels": "row"})
_SCALE, _MARGIN = 30.0, 0.4


@task.register(SpeakerEmbedding)
def _(model: SpeakerEmbedding) -> str:
    return TASK.name


@compute_loss.register(SpeakerEmbedding)
def margin_loss(
    model: SpeakerEmbedding,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of 30 times the cosines between a recording's `logits` and the speakers' directions, 0.4 taken off
    that of the one who speaks (Wang et al. 2018, AM-softmax). `labels` `(batch,)` are numbers of speakers."""
    inputs, labels = labelled(model, batch, cfg)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    check_shape(labels, out.logits.shape[:1])
    unit = lambda x, axis: x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), 1e-12)
    directions = dense(model.objective.weight).astype(jnp.float32)
    cosines = unit(out.logits.astype(jnp.float32), 1) @ unit(directions, 0)
    off = _MARGIN * jax.nn.one_hot(labels, cosines.shape[-1])
    return cross_entropy(_SCALE * (cosines - off), labels, None, cfg)
