"""What masked patches are: visual words, or pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.image_heads import MaskedPatches, MaskedPixels
from ..nn.vision import pair
from .cross_entropy import LossConfig, Metrics, cross_entropy
from .loss import compute_loss, labelled
from .task import Task, task

TASK = Task("masked-image-modeling", auto="AutoModelForMaskedImageModeling", classes=("ForMaskedImageModeling",))


@task.register(MaskedPatches, MaskedPixels)
def _(model: MaskedPatches | MaskedPixels) -> str:
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


@compute_loss.register(MaskedPixels)
def masked_pixel_loss(
    model: MaskedPixels,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """How far, in the mean, the pixels of the patches that `bool_masked_pos` masks are from those told."""
    if cfg.kind is not None or cfg.reduction != "mean":
        raise ValueError("compute_loss: the loss of masked pixels is their mean distance, with reduction='mean'")
    given = {name: value for name, value in batch.items() if value is not None}
    if missing := [name for name in ("pixel_values", "bool_masked_pos") if name not in given]:
        raise ValueError(f"compute_loss: {TASK.name} needs batch[{missing[0]!r}]")
    pixels, patch = jnp.asarray(given["pixel_values"], jnp.float32), pair(model.config.patch_size)
    rows, columns = (n // p for n, p in zip(pixels.shape[2:], patch, strict=True))
    masked = jnp.asarray(given["bool_masked_pos"]).astype(bool).reshape(-1, rows, columns)
    masked = jnp.repeat(jnp.repeat(masked, patch[0], axis=1), patch[1], axis=2)[:, None]
    told: Any = forward(model, **given, key=key, runtime=runtime).reconstruction
    if told.shape != pixels.shape:
        raise ValueError(
            f"compute_loss: {told.shape[2]} x {told.shape[3]} pixels are told of an image of {pixels.shape[2]} x "
            f"{pixels.shape[3]}: the config's encoder_stride must be the pixels of a place"
        )
    apart = jnp.sum(jnp.where(masked, jnp.abs(told.astype(jnp.float32) - pixels), 0.0))
    count = jnp.sum(masked.astype(jnp.float32))
    loss = apart / (count + 1e-5) / pixels.shape[1]
    return loss, {"loss": loss, "num_examples": jnp.asarray(pixels.shape[0], jnp.float32)}
