"""Two towers: what they are for, and the losses that draw pairs together and others apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.towers import Projected, TwoTowers
from .cross_entropy import LossConfig, Metrics
from .loss import compute_loss
from .task import Task, task

TASK = Task("contrastive", hub="zero-shot-image-classification", labels={})


@task.register(TwoTowers)
def _(model: TwoTowers) -> str:
    return TASK.name


@task.register(Projected)
def _(model: Projected) -> str:
    return {"text_embeds": "text-projection", "image_embeds": "image-projection"}[model.output]


@compute_loss.register(TwoTowers)
def contrastive_loss(
    model: TwoTowers,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """Row `i` of the texts belongs to row `i` of the images, and all other rows are negatives.

    CLIP's loss is the mean of two cross entropies, of each image over the texts and of each text over the images; with
    a `logit_bias` (SigLIP) every pair is a yes or no of its own. The batch is the whole one: under `jit` on a mesh, rows on
    other devices are negatives too, and the loss is the same number as on one device.
    """
    if cfg.kind not in (None, "contrastive") or cfg.reduction != "mean":
        raise ValueError("compute_loss: the loss of two towers is contrastive, with reduction='mean'")
    if missing := [name for name in ("input_ids", "pixel_values") if batch.get(name) is None]:
        raise ValueError(
            f"compute_loss: {type(model).__name__} compares texts with images: it needs batch[{missing[0]!r}]"
        )
    out = forward(
        model, **{name: value for name, value in batch.items() if value is not None}, key=key, runtime=runtime
    )
    assert out.logits_per_text is not None
    logits = out.logits_per_text.astype(jnp.float32)  # [texts, images]
    rows, others = logits.shape
    if rows != others:
        raise ValueError(f"compute_loss: {rows} texts and {others} images are no pairs: give equally many")
    eye = jnp.eye(rows)
    if model.logit_bias is None:
        of_text, of_image = (-jnp.sum(jax.nn.log_softmax(x, axis=-1) * eye) / rows for x in (logits, logits.T))
        loss = (of_text + of_image) / 2
    else:
        loss = -jnp.sum(jax.nn.log_sigmoid((2 * eye - 1) * logits)) / rows
    hit = jnp.mean((jnp.argmax(logits, axis=-1) == jnp.arange(rows)).astype(jnp.float32))
    return loss, {"loss": loss, "accuracy": hit, "num_examples": jnp.asarray(rows, jnp.float32)}
