"""What a sound is, as a row of scores."""

from __future__ import annotations

from ..nn.audio_heads import AudioClassifier
from .loss import compute_loss
from .sequence_classification import classification_loss
from .task import Task, task

TASK = Task(
    "audio-classification",
    hub="audio-classification",
    auto="AutoModelForAudioClassification",
    classes=("ForAudioClassification",),
    labels={"labels": "row"},
)


@task.register(AudioClassifier)
def _(model: AudioClassifier) -> str:
    return TASK.name


compute_loss.register(AudioClassifier)(classification_loss)
