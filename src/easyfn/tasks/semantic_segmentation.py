"""What each place of an image shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.image_heads import SemanticSegmenter
from ..nn.resize import resize_images
from .cross_entropy import LossConfig, Metrics, cross_entropy
from .loss import compute_loss, labelled
from .task import Task, task

TASK = Task(
    "semantic-segmentation",
    hub="image-segmentation",
    auto="AutoModelForSemanticSegmentation",
    classes=("ForSemanticSegmentation",),
)


@task.register(SemanticSegmenter)
def _(model: SemanticSegmenter) -> str:
    return TASK.name


@compute_loss.register(SemanticSegmenter)
def segmentation_loss(
    model: SemanticSegmenter,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of every pixel of `labels` `(batch, height, width)`, for which the scores are resampled.

    Pixels of the config's `semantic_loss_ignore_index` do not count, nor those of `cfg.ignore_index`.
    """
    inputs, labels = labelled(model, batch, cfg)
    if labels.ndim != 3:
        raise ValueError(f"compute_loss: labels of places have the shape (batch, height, width), not {labels.shape}")
    if model.config.num_labels == 1:
        raise ValueError("compute_loss: one class alone (num_labels=1) is no cross entropy: give the config two")
    scores: Any = forward(model, **inputs, key=key, runtime=runtime).logits
    scores = resize_images(jnp.moveaxis(scores, 1, -1).astype(jnp.float32), labels.shape[1:])
    skipped = labels == getattr(model.config, "semantic_loss_ignore_index", cfg.ignore_index)
    return cross_entropy(scores, jnp.where(skipped, cfg.ignore_index, labels), None, cfg)
