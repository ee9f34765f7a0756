"""What the heads on encoders of sound are for, and their losses."""

from __future__ import annotations

from ..nn.audio import AudioClassifier
from .loss import classification_loss, compute_loss
from .task import task


@task.register(AudioClassifier)
def _(model: AudioClassifier) -> str:
    return "audio-classification"


compute_loss.register(AudioClassifier)(classification_loss)
