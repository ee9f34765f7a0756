"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): a ViT with scaled branches, that reads images of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..names.rules import Rule
from ..nn.image_heads import ImageClassifier
from ..nn.mlp import MLP, FusedGatedMLP
from ..nn.vision import ClassTokens, EncoderBlock, FirstToken, ImageEncoder, SelfAttention
from ..registry.family import family
from .vision import LEGACY, VIT_BACKBONE, block_names, head_names


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


def dinov2(c: Dinov2Config, *, registers: int | None = None) -> ImageEncoder:
    """The encoder; with `registers`, so many tokens that have no position and mean nothing."""
    bias = (c.qkv_bias, c.qkv_bias, c.qkv_bias, True)
    wide = c.hidden_size * c.mlp_ratio
    mask = (1, c.hidden_size) if c.use_mask_token else None
    # With registers the reference resamples positions with antialiasing, without them not.
    tokens = ClassTokens(c, mask_token=mask, registers=registers, antialias=registers is not None)

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


def dinov2_names(prefix: str, attention: dict[str, str] = ATTENTION) -> Callable[[Any], list[Rule]]:
    """The names of the encoder and of the classifier, where files call the parts of `attention` so."""

    def names(model: Any) -> list[Rule]:
        swiglu = {"mlp.gate_up_proj": "mlp.weights_in", "mlp.down_proj": "mlp.weights_out"}
        plain = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
        mlp = swiglu if model.config.use_swiglu_ffn else plain
        return head_names(model, ImageEncoder, block_names("layers", "encoder.layer", attention | mlp), prefix)

    return names


family(
    "dinov2",
    config=Dinov2Config,
    tasks={
        "base": dinov2,
        "image-classification": lambda c: ImageClassifier(dinov2(c), pooling="cls_mean"),
    },
    architectures={"Dinov2Model": "base", "Dinov2ForImageClassification": "image-classification"},
    names=dinov2_names("dinov2"),
    modules=dinov2_names("dinov2", {}),
    ignore=VIT_BACKBONE,
    prefix="dinov2",
)
