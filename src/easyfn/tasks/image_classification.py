"""What an image shows, as a row of scores."""

from __future__ import annotations

from ..nn.image_heads import ImageClassifier
from .loss import compute_loss
from .sequence_classification import classification_loss
from .task import Task, task

TASK = Task(
    "image-classification",
    hub="image-classification",
    auto="AutoModelForImageClassification",
    classes=("ForImageClassification",),
    labels={"labels": "row"},
)


@task.register(ImageClassifier)
def _(model: ImageClassifier) -> str:
    return TASK.name


compute_loss.register(ImageClassifier)(classification_loss)
