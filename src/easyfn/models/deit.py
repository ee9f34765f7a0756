"""DeiT (Touvron et al. 2020, arXiv 2012.12877): a ViT with a second token that learns from a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx

from ..config.fields import ViTFields
from ..nn import Context, Linear, Output
from ..nn.image_heads import ImageClassifier, MaskedPixels
from ..nn.vision import ImageEncoder
from ..registry.family import family
from ..tasks.task import task
from .vision import LEGACY, MODULES, block_names, head_names
from .vit import vit


@dataclass(frozen=True, kw_only=True)
class DeiTConfig(ViTFields):
    """The keys of a DeiT `config.json`."""

    model_type: ClassVar[str] = "deit"


class DistilledClassifier(eqx.Module):
    """The mean of two classifiers: of the class token and of the token that learned from the teacher. For inference."""

    model: ImageEncoder
    cls_classifier: Linear
    distillation_classifier: Linear
    config: Any = eqx.field(static=True)

    def __init__(self, model: ImageEncoder) -> None:
        c = model.config
        self.model = model
        self.cls_classifier, self.distillation_classifier = (
            Linear(c.hidden_size, c.num_labels, True, axes=(None, "embed"), role="head") for _ in range(2)
        )
        self.config = c

    def __call__(self, context: Context, cache: Any = None, **inputs: Any) -> Output:
        out = self.model(context, cache, **inputs)
        x: Any = out.last_hidden_state
        return out.replace(logits=(self.cls_classifier(x[:, 0]) + self.distillation_classifier(x[:, 1])) / 2)


@task.register(DistilledClassifier)
def _(model: DistilledClassifier) -> str:
    return "image-classification-with-teacher"


family(
    "deit",
    config=DeiTConfig,
    tasks={
        "base": lambda c: vit(c, distilled=True),
        "image-classification": lambda c: ImageClassifier(vit(c, pooler=False, distilled=True)),
        "image-classification-with-teacher": lambda c: DistilledClassifier(vit(c, pooler=False, distilled=True)),
        "masked-image-modeling": lambda c: MaskedPixels(
            vit(c, pooler=False, distilled=True, masked=True), c.hidden_size, extra=2
        ),
    },
    architectures={
        "DeiTModel": "base",
        "DeiTForImageClassification": "image-classification",
        "DeiTForImageClassificationWithTeacher": "image-classification-with-teacher",
        "DeiTForMaskedImageModeling": "masked-image-modeling",
    },
    names=lambda model: head_names(model, ImageEncoder, block_names("layers", "encoder.layer", LEGACY), "deit"),
    modules=lambda model: head_names(model, ImageEncoder, block_names("layers", "layers", MODULES), "deit"),
    prefix="deit",
)
