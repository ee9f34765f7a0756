"""SegFormer: squares that do not divide the image, a stage that reduces nothing, its two heads."""

from typing import Any

from cases import images, reference

SIZES: dict[str, Any] = {
    "num_encoder_blocks": 3,
    "depths": [1, 2, 1],
    "sr_ratios": [4, 2, 1],
    "hidden_sizes": [8, 12, 20],
    "patch_sizes": [7, 3, 3],
    "strides": [4, 2, 2],
    "num_attention_heads": [1, 3, 2],
    "mlp_ratios": [4, 3, 2],
    "decoder_hidden_size": 16,
    "image_size": 52,
}


def _model(head: str, **more: Any) -> Any:
    import transformers

    return reference(getattr(transformers, f"Segformer{head}"), transformers.SegformerConfig(**{**SIZES, **more}))


@images("segformer", task="base")
def _():
    return _model("Model", reshape_last_stage=False)


@images("segformer-classifier", task="image-classification", variant=True)
def _():
    return _model("ForImageClassification", num_labels=4, hidden_act="relu")


@images("segformer-segmentation", task="semantic-segmentation", variant=True)
def _():
    import torch

    model = _model("ForSemanticSegmentation", num_labels=5)
    torch.manual_seed(1)
    norm = model.decode_head.batch_norm
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2.0)
    return model
