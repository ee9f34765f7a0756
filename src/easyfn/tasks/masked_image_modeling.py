"""The visual words of masked patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.image_heads import MaskedPatches
from .cross_entropy import LossConfig, Metrics, cross_entropy
from .loss import compute_loss, labelled
from .task import Task, task

TASK = Task("masked-image-modeling", auto="AutoModelForMaskedImageModeling", classes=("ForMaskedImageModeling",))


@task.register(MaskedPatches)
def _(model: MaskedPatches) -> str:
    return TASK.name


@compute_loss.register(MaskedPatches)
def masked_patch_loss(
    model: MaskedPatches,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of the patches that `bool_masked_pos` `(batch, patches)` masks.

    `labels` are the words of all patches, `(batch, patches)`, or those of the masked ones in turn, `(masked,)`, as
    transformers has them.
    """
    inputs, labels = labelled(model, batch, cfg)
    masked = inputs.get("bool_masked_pos")
    if masked is None:
        raise ValueError("compute_loss: masked-image-modeling needs batch['bool_masked_pos'], which patches are masked")
    masked = jnp.asarray(masked).astype(bool)
    if labels.ndim == 1:
        if not isinstance(masked, jax.core.Tracer) and int(np.sum(masked)) != labels.shape[0]:
            raise ValueError(f"compute_loss: {labels.shape[0]} labels for {int(np.sum(masked))} masked patches")
        labels = labels[jnp.clip(jnp.cumsum(masked) - 1, 0, labels.shape[0] - 1)].reshape(masked.shape)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    if labels.shape != out.logits.shape[:2]:
        raise ValueError(f"compute_loss: labels have the shape {out.logits.shape[:2]} of patches, not {labels.shape}")
    return cross_entropy(out.logits, jnp.where(masked, labels, cfg.ignore_index), None, cfg)
