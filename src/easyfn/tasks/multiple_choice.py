"""Multiple choice: which of several texts fits. Its inputs, forward, loss and word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..forward.forward import forward
from ..inputs.statement import Inputs, inputs
from ..nn.context import Runtime
from ..nn.encoder_heads import MultipleChoice
from ..nn.output import Output
from .cross_entropy import LossConfig, Metrics, cross_entropy
from .loss import compute_loss, split_labels
from .task import Task, task

TASK = Task("multiple-choice", hub="multiple-choice", classes=("ForMultipleChoice",), labels={"labels": "row"})


@task.register(MultipleChoice)
def _(model: MultipleChoice) -> str:
    return TASK.name


@inputs.register(MultipleChoice)
def _(model: MultipleChoice) -> Inputs:
    one = inputs(model.model)
    with_choices = lambda shape: shape and (shape[0], "choices", *shape[1:])
    fields = {name: dataclasses.replace(each, shape=with_choices(each.shape)) for name, each in one.fields.items()}
    return one.replace(fields=fields, sizes={**one.sizes, "choices": 2})


@forward.register(MultipleChoice)
def choose(model: MultipleChoice, input_ids: Any = None, *, adapter_ids: Any = None, **given: Any) -> Output:
    """[`easyfn.forward`][] with an axis of choices after that of the batch; `logits` are `(batch, choices)`."""
    given = {name: value for name, value in {"input_ids": input_ids, **given}.items() if value is not None}
    main = next((name for name in ("input_ids", "inputs_embeds") if name in given), None)
    if main is None or given.get("cache") is not None:
        raise ValueError("forward: multiple choice takes input_ids or inputs_embeds, and no cache")
    rank = 3 if main == "input_ids" else 4
    shape = jnp.shape(given[main])
    if len(shape) != rank:
        raise ValueError(f"{main} must have shape (batch, choices, seq{', embed' * (rank - 3)}), not {shape}")
    batch, choices = shape[:2]
    rows = {}
    for name, value in given.items():
        by_choice = name not in ("key", "runtime") and jnp.ndim(value) >= 3 and jnp.shape(value)[:2] == (batch, choices)
        rows[name] = jnp.asarray(value).reshape(batch * choices, *jnp.shape(value)[2:]) if by_choice else value
    if adapter_ids is not None:
        rows["adapter_ids"] = [each for each in adapter_ids for _ in range(choices)]
    out = forward(model.rows, **rows)
    assert out.logits is not None
    return out.replace(logits=out.logits.reshape(batch, choices))


@compute_loss.register(MultipleChoice)
def choice_loss(
    model: MultipleChoice,
    batch: Mapping[str, Any],
    cfg: LossConfig = LossConfig(),
    *,
    key: jax.Array | None = None,
    runtime: Runtime = Runtime(),
) -> tuple[jax.Array, Metrics]:
    """The cross entropy of the scores and `labels` `(batch,)`, the number of the text that fits."""
    given, labels = split_labels(batch)
    if labels is None or cfg.kind not in (None, "cross-entropy"):
        raise ValueError("compute_loss: multiple choice is a cross entropy, and needs batch['labels']")
    out = forward(model, **given, key=key, runtime=runtime)
    assert out.logits is not None
    return cross_entropy(out.logits, labels.reshape(-1), None, cfg)
