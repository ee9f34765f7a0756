"""What the heads on encoders of images are for, and their losses."""

from __future__ import annotations

from ..nn.vision import ImageClassifier
from .loss import classification_loss, compute_loss
from .task import task


@task.register(ImageClassifier)
def _(model: ImageClassifier) -> str:
    return "image-classification"


compute_loss.register(ImageClassifier)(classification_loss)
