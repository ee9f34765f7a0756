"""One vector for a text. It has no loss of its own: what is drawn together is the caller's."""

from __future__ import annotations

from ..nn.sentence import SentenceEmbedding
from .task import Task, task

TASK = Task("sentence-embedding", hub="sentence-similarity", labels={})


@task.register(SentenceEmbedding)
def _(model: SentenceEmbedding) -> str:
    return TASK.name
