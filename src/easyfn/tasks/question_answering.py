"""Where in a text the answer begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..forward.forward import forward
from ..nn.context import Runtime
from ..nn.encoder_heads import QuestionAnswering
from .cross_entropy import LossConfig, Metrics, as_array, cross_entropy
from .loss import compute_loss, counted
from .task import Task, task

TASK = Task(
    "question-answering",
    hub="question-answering",
    auto="AutoModelForQuestionAnswering",
    classes=("ForQuestionAnswering",),
    peft="QUESTION_ANS",
    heads=("qa_outputs",),
    labels={"start_positions": "row", "end_positions": "row"},
)


@task.register(QuestionAnswering)
def _(model: QuestionAnswering) -> str:
    return TASK.name


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
        seen = counted(inputs, logits)
        logits = logits if seen is None else jnp.where(seen, logits, -1e30)
        places = jnp.clip(places, 0, length)
        return cross_entropy(logits, jnp.where(places == length, cfg.ignore_index, places), None, cfg)

    (first, a), (second, b) = one(out.start_logits, start), one(out.end_logits, end)
    metrics = {name: (a[name] + b[name]) / 2 for name in a if name not in ("num_tokens", "num_examples")}
    return (first + second) / 2, {**metrics, "num_examples": jnp.asarray(start.shape[0], jnp.float32)}
