"""DeiT: a token that learns from a teacher."""

from cases import images, reference

from .vit import SIZES


@images("deit", task="base")
def _():
    from transformers import DeiTConfig, DeiTModel

    return reference(DeiTModel, DeiTConfig(**SIZES))


@images("deit-classifier", task="image-classification", variant=True)
def _():
    from transformers import DeiTConfig, DeiTForImageClassification

    return reference(DeiTForImageClassification, DeiTConfig(**SIZES, num_labels=5))


@images("deit-teacher", task="image-classification-with-teacher", variant=True)
def _():
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    return reference(DeiTForImageClassificationWithTeacher, DeiTConfig(**SIZES, num_labels=3))


@images("deit-masked", task="masked-image-modeling", variant=True)
def _():
    from transformers import DeiTConfig, DeiTForMaskedImageModeling

    return reference(DeiTForMaskedImageModeling, DeiTConfig(**SIZES, encoder_stride=8))
