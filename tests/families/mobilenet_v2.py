"""MobileNet V2: an odd image; statistics of batches away from neutral; convolutions that spread; zeros as torch has them."""

from typing import Any

from cases import images, reference

SIZES: dict[str, Any] = {
    "depth_multiplier": 0.1,
    "expand_ratio": 1.5,
    "depth_divisible_by": 4,
    "min_depth": 4,
    "image_size": 51,
}


def _model(head: str, **more: Any) -> Any:
    import torch
    import transformers

    model = reference(getattr(transformers, f"MobileNetV2{head}"), transformers.MobileNetV2Config(**{**SIZES, **more}))
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.3, 2.0)
    return model


@images("mobilenet_v2", task="base")
def _():
    return _model("Model", finegrained_output=False, first_layer_is_expansion=False)


@images("mobilenet_v2-classifier", task="image-classification", variant=True)
def _():
    return _model("ForImageClassification", num_labels=4, hidden_act="relu", tf_padding=False)


@images("mobilenet_v2-segmentation", task="semantic-segmentation", variant=True)
def _():
    return _model("ForSemanticSegmentation", num_labels=3, output_stride=8)
