"""Tokens that a generator replaced: what ELECTRA's discriminator is trained to find, a pretraining without a hub's word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.encoder_heads import ReplacedTokens
from .cross_entropy import LossConfig, Metrics, check_shape, loss_from_logits
from .loss import compute_loss, counted, split_labels
from .task import task


@task.register(ReplacedTokens)
def _(model: ReplacedTokens) -> str:
    return "pretraining"


@compute_loss.register(ReplacedTokens)
def replaced_loss(
    model: ReplacedTokens,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The binary cross entropy of each token's score and its label: 1 if it was replaced, 0 if not."""
    if cfg.kind not in (None, "multi-label"):
        raise ValueError(f"compute_loss: whether tokens were replaced is a binary cross entropy, not {cfg.kind!r}")
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels']")
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    check_shape(labels, out.logits.shape)
    seen = counted(inputs, labels)
    labels = labels if seen is None else jnp.where(seen, labels, cfg.ignore_index)
    return loss_from_logits(out.logits, labels, dataclasses.replace(cfg, kind="multi-label"))
