"""One row of scores for a text: a class, several, or a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.fields import setting
from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.encoder_heads import LastMarkClassifier, PooledClassifier
from ..nn.heads import SequenceClassifier
from .cross_entropy import LossConfig, Metrics, loss_from_logits
from .loss import compute_loss, split_labels
from .task import Task, task

TASK = Task(
    "sequence-classification",
    hub="text-classification",
    auto="AutoModelForSequenceClassification",
    classes=("ForSequenceClassification",),
    peft="SEQ_CLS",
    heads=("classifier", "score"),
    labels={"labels": "row"},
)


@task.register(SequenceClassifier)
@task.register(PooledClassifier)
@task.register(LastMarkClassifier)
def _(model: SequenceClassifier | PooledClassifier | LastMarkClassifier) -> str:
    return TASK.name


@compute_loss.register(SequenceClassifier)
@compute_loss.register(PooledClassifier)
@compute_loss.register(LastMarkClassifier)
def classification_loss(
    model: Any,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The loss of a model that answers one row of scores per example: regression, one label, or several.

    As transformers: `config.problem_type` says which, or else one score is a regression, integer labels are classes,
    and floating point labels `(batch, num_labels)` are yes or no for each class (DeBERTa's a weight of each).
    """
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels']")
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    return loss_from_logits(
        out.logits, labels, dataclasses.replace(cfg, kind=cfg.kind or problem(model.config, labels))
    )


def problem(config: Any, labels: Any) -> str:
    """The kind of loss of a classifier, from `config.problem_type`, or from its labels."""
    named = {
        "regression": "regression",
        "single_label_classification": "cross-entropy",
        "multi_label_classification": "multi-label",
    }
    said = setting(config, "problem_type")
    if said is not None:
        if said not in named:
            raise ValueError(f"config.problem_type is one of {', '.join(named)}, not {said!r}")
        return named[said]
    if config.num_labels == 1:
        return "regression"
    if labels.ndim > 1 and labels.shape[-1] > 1 and getattr(config, "soft_labels", False):
        return "cross-entropy"
    return "cross-entropy" if jnp.issubdtype(labels.dtype, jnp.integer) else "multi-label"
