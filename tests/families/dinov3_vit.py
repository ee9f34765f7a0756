"""DINOv3: registers, rotary positions, a gated MLP."""

from cases import images, reference

from .vit import SIZES


@images("dinov3", task="base")
def _():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**SIZES, num_register_tokens=3, layerscale_value=0.4, key_bias=True)
    return reference(DINOv3ViTModel, config)


@images("dinov3-gated", task="base", variant=True)
def _():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**SIZES, num_register_tokens=0, use_gated_mlp=True, mlp_bias=False, hidden_act="silu")
    return reference(DINOv3ViTModel, config)
