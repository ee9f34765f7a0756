"""Causal language models: each token says the next. Their loss is what `compute_loss` does by default."""

from __future__ import annotations

from ..nn.heads import CausalLM
from .task import Task, task

TASK = Task(
    "causal-lm",
    hub="text-generation",
    auto="AutoModelForCausalLM",
    classes=("ForCausalLM", "LMHeadModel"),
    peft="CAUSAL_LM",
)


@task.register(CausalLM)
def _(model: CausalLM) -> str:
    return TASK.name
