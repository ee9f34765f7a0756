"""Masked language models, with and without a head for the next sentence, and that head alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ..core.rows import of_batch
from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.encoder_heads import MaskedLM, NextSentence
from ..nn.heads import input_embeddings
from .cross_entropy import LossConfig, Metrics, as_array, check_shape, cross_entropy, vocabulary_loss
from .embeddings import output_embeddings
from .loss import compute_loss, counted, labelled
from .task import Task, task

TASK = Task("masked-lm", hub="fill-mask", auto="AutoModelForMaskedLM", classes=("ForMaskedLM",))
NEXT = Task("next-sentence", classes=("ForNextSentencePrediction",), labels={"labels": "row"})


@task.register(MaskedLM)
def _(model: MaskedLM) -> str:
    return TASK.name if model.seq_relationship is None else "pretraining"


@task.register(NextSentence)
def _(model: NextSentence) -> str:
    return NEXT.name


@output_embeddings.register(MaskedLM)
def _(model: MaskedLM) -> Any:
    return input_embeddings(model) if model.decoder is None else model.decoder


@compute_loss.register(MaskedLM)
def masked_loss(
    model: MaskedLM,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of each token's scores and its own label; -100 for tokens that were not masked.

    With a next sentence head `batch["next_sentence_label"]` `(batch,)`, of ALBERT `sentence_order_label`, adds its cross entropy.
    """
    inputs, labels = labelled(model, batch, cfg)
    follows = inputs.pop("next_sentence_label", None)
    follows = inputs.pop("sentence_order_label", follows)
    model, inputs = of_batch(model, inputs, labels.shape[0])
    out = forward(model.model, **inputs, key=key, runtime=runtime)
    assert out.last_hidden_state is not None
    check_shape(labels, out.last_hidden_state.shape[:2])
    loss, metrics = vocabulary_loss(model, out.last_hidden_state, labels, counted(inputs, labels), cfg)
    if follows is None:
        return loss, metrics
    if model.seq_relationship is None or cfg.reduction != "mean":
        raise ValueError(
            "compute_loss: next_sentence_label (sentence_order_label) needs a model for pretraining and reduction='mean'"
        )
    second, _ = cross_entropy(model.seq_relationship(out.pooler_output), as_array(follows).reshape(-1), None, cfg)
    return loss + second, {**metrics, "loss": loss + second, "next_sentence_loss": second}


@compute_loss.register(NextSentence)
def next_sentence_loss(
    model: NextSentence,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of two scores and `labels` `(batch,)`: 0 if the second sentence follows the first, 1 if not."""
    inputs, labels = labelled(model, batch, cfg)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    return cross_entropy(out.logits, labels.reshape(-1), None, cfg)
