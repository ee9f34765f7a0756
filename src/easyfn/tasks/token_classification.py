"""A label for every token: names in a text, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.encoder_heads import TokenClassifier
from .cross_entropy import LossConfig, Metrics, check_shape, cross_entropy
from .loss import compute_loss, counted, labelled
from .task import Task, task

TASK = Task(
    "token-classification",
    hub="token-classification",
    auto="AutoModelForTokenClassification",
    classes=("ForTokenClassification",),
    peft="TOKEN_CLS",
    heads=("classifier", "score"),
)


@task.register(TokenClassifier)
def _(model: TokenClassifier) -> str:
    return TASK.name


@compute_loss.register(TokenClassifier)
def token_loss(
    model: TokenClassifier,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of each token's scores over the labels and its label."""
    inputs, labels = labelled(model, batch, cfg)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    check_shape(labels, out.logits.shape[:2])
    return cross_entropy(out.logits, labels, counted(inputs, labels), cfg)
