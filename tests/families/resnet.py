"""ResNet: both kinds of layers, and images that no stride divides."""

from typing import Any

from cases import images, reference

SIZES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [12, 20, 24], "depths": [1, 3, 2]}


def _resnet(cls: str, **more: Any) -> Any:
    import torch
    import transformers

    model = reference(getattr(transformers, cls), transformers.ResNetConfig(**SIZES, **more))
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand_like(buffer))
    return model


@images("resnet", task="base")
def _():
    return _resnet("ResNetModel", hidden_act="gelu", downsample_in_first_stage=True, num_channels=2)


@images("resnet-classifier", task="image-classification", variant=True)
def _():
    return _resnet("ResNetForImageClassification", layer_type="basic", num_labels=5)


@images("resnet-early", task="image-classification", variant=True)
def _():
    return _resnet("ResNetForImageClassification", downsample_in_bottleneck=True, num_labels=5)
