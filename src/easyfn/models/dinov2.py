"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): a ViT with scaled branches, that reads images of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import CommonFields, Size
from ..names.rules import Rule
from ..nn.image_heads import ImageClassifier
from ..nn.mlp import MLP, FusedGatedMLP
from ..nn.vision import ClassTokens, EncoderBlock, FirstToken, ImageEncoder, SelfAttention
from ..registry.family import family
from .vision import LEGACY, block_names, head_names


@dataclass(frozen=True, kw_only=True)
class Dinov2Config(CommonFields):
    """The keys of a DINOv2 `config.json`."""

    model_type: ClassVar[str] = "dinov2"
    hidden_size: Size = 768
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 14
    num_channels: Size = 3
    qkv_bias: bool = True
    layerscale_value: float | int = 1.0
    drop_path_rate: float | int = 0.0
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True


def dinov2(c: Dinov2Config) -> ImageEncoder:
    bias = (c.qkv_bias, c.qkv_bias, c.qkv_bias, True)
    wide = c.hidden_size * c.mlp_ratio
    tokens = ClassTokens(c, mask_token=(1, c.hidden_size) if c.use_mask_token else None)

    def block() -> EncoderBlock:
        attention = SelfAttention(
            c.hidden_size, c.num_attention_heads, bias=bias, dropout=c.attention_probs_dropout_prob
        )
        gated = (wide * 2 // 3 + 7) // 8 * 8
        swiglu = FusedGatedMLP(c.hidden_size, gated, "silu", bias=True)
        mlp = swiglu if c.use_swiglu_ffn else MLP(c.hidden_size, wide, c.hidden_act, bias=True)
        return EncoderBlock(
            c.hidden_size, attention, mlp, c.layer_norm_eps, scale=c.layerscale_value, drop_path=c.drop_path_rate
        )

    layers = [block() for _ in range(c.num_hidden_layers)]
    return ImageEncoder(c, tokens, layers, pooler=FirstToken(), interpolate=True)


ATTENTION = {a: b for a, b in LEGACY.items() if a.startswith("attention.")}


def _rules(config: Dinov2Config, attention: dict[str, str]) -> list[Rule]:
    swiglu = {"mlp.gate_up_proj": "mlp.weights_in", "mlp.down_proj": "mlp.weights_out"}
    mlp = swiglu if config.use_swiglu_ffn else {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    return block_names("layers", "encoder.layer", attention | mlp)


family(
    "dinov2",
    config=Dinov2Config,
    tasks={
        "base": dinov2,
        "image-classification": lambda c: ImageClassifier(dinov2(c), pooling="cls_mean"),
    },
    architectures={"Dinov2Model": "base", "Dinov2ForImageClassification": "image-classification"},
    names=lambda model: head_names(model, ImageEncoder, _rules(model.config, ATTENTION), "dinov2"),
    modules=lambda model: head_names(model, ImageEncoder, _rules(model.config, {}), "dinov2"),
    # of the backbone for detection and segmentation
    ignore=("out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states"),
    prefix="dinov2",
)
