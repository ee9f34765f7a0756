"""Swin V2: windows that do not divide the image, one larger than its stage, sizes of pretraining; masked patches."""

from cases import images, reference

from .swin import SIZES


@images("swinv2", task="base")
def _():
    from transformers import Swinv2Config, Swinv2Model

    config = Swinv2Config(**SIZES, window_size=4, mlp_ratio=2.0, pretrained_window_sizes=[6, 3])
    return reference(Swinv2Model, config)


@images("swinv2-classifier", task="image-classification", variant=True)
def _():
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(
        **{**SIZES, "image_size": (26, 22)}, window_size=7, num_labels=4, qkv_bias=False, pretrained_window_sizes=[0, 0]
    )
    return reference(Swinv2ForImageClassification, config)


@images("swinv2-masked", task="masked-image-modeling", variant=True)
def _():
    from transformers import Swinv2Config, Swinv2ForMaskedImageModeling

    return reference(
        Swinv2ForMaskedImageModeling, Swinv2Config(**SIZES, window_size=5, encoder_stride=4, num_channels=2)
    )
