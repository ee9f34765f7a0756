"""What the heads on encoders are for, and their losses, as transformers computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.rows import of_batch
from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.encoder_heads import (
    MaskedLM,
    NextSentence,
    PooledClassifier,
    QuestionAnswering,
    SentenceEmbedding,
    TokenClassifier,
)
from ..nn.heads import input_embeddings
from .cross_entropy import LossConfig, Metrics, as_array, check_shape, cross_entropy, segments_of, vocabulary_loss
from .embeddings import output_embeddings
from .loss import classification_loss, compute_loss, split_labels
from .task import task


@task.register(MaskedLM)
def _(model: MaskedLM) -> str:
    return "masked-lm" if model.seq_relationship is None else "pretraining"


@task.register(NextSentence)
def _(model: NextSentence) -> str:
    return "next-sentence"


@task.register(PooledClassifier)
def _(model: PooledClassifier) -> str:
    return "sequence-classification"


@task.register(TokenClassifier)
def _(model: TokenClassifier) -> str:
    return "token-classification"


@task.register(QuestionAnswering)
def _(model: QuestionAnswering) -> str:
    return "question-answering"


@task.register(SentenceEmbedding)
def _(model: SentenceEmbedding) -> str:
    return "sentence-embedding"


@output_embeddings.register(MaskedLM)
def _(model: MaskedLM) -> Any:
    return input_embeddings(model) if model.decoder is None else model.decoder


def _counted(inputs: Mapping[str, Any], labels: jax.Array) -> jax.Array | None:
    segments = segments_of(inputs, labels.shape)
    return None if segments is None else segments > 0


def _labelled(model: Any, batch: Mapping[str, Any], cfg: LossConfig) -> tuple[dict[str, Any], jax.Array]:
    if cfg.kind not in (None, "cross-entropy"):
        raise ValueError(f"compute_loss: the labels of {type(model).__name__} are a cross entropy, not {cfg.kind!r}")
    inputs, labels = split_labels(batch)
    if labels is None:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch['labels']")
    return inputs, labels


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

    With a next sentence head `batch["next_sentence_label"]` `(batch,)` adds its cross entropy.
    """
    inputs, labels = _labelled(model, batch, cfg)
    follows = inputs.pop("next_sentence_label", None)
    model, inputs = of_batch(model, inputs, labels.shape[0])
    out = forward(model.model, **inputs, key=key, runtime=runtime)
    assert out.last_hidden_state is not None
    check_shape(labels, out.last_hidden_state.shape[:2])
    loss, metrics = vocabulary_loss(model, out.last_hidden_state, labels, _counted(inputs, labels), cfg)
    if follows is None:
        return loss, metrics
    if model.seq_relationship is None or cfg.reduction != "mean":
        raise ValueError("compute_loss: next_sentence_label needs a model for pretraining and reduction='mean'")
    second, _ = cross_entropy(model.seq_relationship(out.pooler_output), as_array(follows).reshape(-1), None, cfg)
    return loss + second, {**metrics, "loss": loss + second, "next_sentence_loss": second}


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
    inputs, labels = _labelled(model, batch, cfg)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    check_shape(labels, out.logits.shape[:2])
    return cross_entropy(out.logits, labels, _counted(inputs, labels), cfg)


@compute_loss.register(QuestionAnswering)
def answer_loss(
    model: QuestionAnswering,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The mean of two cross entropies over places: `batch["start_positions"]` and `batch["end_positions"]`, `(batch,)`.

    A place beyond the sequence is an answer that was cut off: it does not count. Padding is no place for an answer
    (transformers lets it take part in the softmax, so that there the loss of a row depends on how much it was padded).
    """
    if cfg.kind not in (None, "cross-entropy") or cfg.reduction != "mean":
        raise ValueError("compute_loss: question answering is a cross entropy with reduction='mean'")
    inputs = {name: value for name, value in batch.items() if value is not None}
    asked = ("start_positions", "end_positions")
    if missing := [name for name in asked if name not in inputs]:
        raise ValueError(f"compute_loss: {type(model).__name__} needs batch[{missing[0]!r}]")
    start, end = (as_array(inputs.pop(name)).reshape(-1) for name in asked)
    out = forward(model, **inputs, key=key, runtime=runtime)

    def one(logits: Any, places: jax.Array) -> tuple[jax.Array, Metrics]:
        length = logits.shape[1]
        seen = _counted(inputs, logits)
        logits = logits if seen is None else jnp.where(seen, logits, -1e30)
        places = jnp.clip(places, 0, length)
        return cross_entropy(logits, jnp.where(places == length, cfg.ignore_index, places), None, cfg)

    (first, a), (second, b) = one(out.start_logits, start), one(out.end_logits, end)
    metrics = {name: (a[name] + b[name]) / 2 for name in a if name not in ("num_tokens", "num_examples")}
    return (first + second) / 2, {**metrics, "num_examples": jnp.asarray(start.shape[0], jnp.float32)}


compute_loss.register(PooledClassifier)(classification_loss)


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
    inputs, labels = _labelled(model, batch, cfg)
    out = forward(model, **inputs, key=key, runtime=runtime)
    assert out.logits is not None
    return cross_entropy(out.logits, labels.reshape(-1), None, cfg)
