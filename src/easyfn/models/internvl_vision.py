"""The image tower of InternVL (Chen et al. 2024, arXiv 2312.14238): a ViT with layer scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..names.rules import rename
from ..nn import LayerNorm, RMSNorm
from ..nn.mlp import MLP
from ..nn.vision import ClassTokens, EncoderBlock, ImageEncoder, SelfAttention
from ..registry.family import family
from .vision import block_names


@dataclass(frozen=True, kw_only=True)
class InternVLVisionConfig(CommonFields):
    """The keys of InternVL's `vision_config`."""

    model_type: ClassVar[str] = "internvl_vision"
    ignored: ClassVar = ("projection_dropout", "dropout", "initializer_factor")  # one value, or not read
    hidden_size: Size = 1024
    num_hidden_layers: int = 24
    num_attention_heads: Size = 16
    attention_bias: bool = False
    use_qk_norm: bool = False
    intermediate_size: Size = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_dropout: float | int = 0.0
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, ...] = (448, 448)
    patch_size: int | tuple[int, ...] = (14, 14)
    num_channels: Size = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = True
    layer_scale_init_value: float = 0.1
    use_mean_pooling: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "projection_dropout", 0.0)
        return data


NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def internvl_vision(c: InternVLVisionConfig) -> ImageEncoder:
    if c.norm_type not in NORMS:
        raise ValueError(f"internvl_vision: norm_type={c.norm_type!r} is none of {', '.join(NORMS)}")
    size, bias = c.hidden_size, c.attention_bias

    def block() -> EncoderBlock:
        norms = (RMSNorm(size, 1e-6), RMSNorm(size, 1e-6)) if c.use_qk_norm else (None, None)
        return EncoderBlock(
            size,
            SelfAttention(
                size,
                c.num_attention_heads,
                bias=(bias, bias, bias, True),
                qk_norm=norms,
                dropout=c.attention_dropout,
            ),
            MLP(size, c.intermediate_size, c.hidden_act, bias=True, dropout=c.hidden_dropout_prob),
            c.layer_norm_eps,
            scale=c.layer_scale_init_value,
            norm=NORMS[c.norm_type],
        )

    tokens = ClassTokens(
        c, mask_token=(1, 1, size) if c.use_mask_token else None, positions=c.use_absolute_position_embeddings
    )
    norm = eqx.nn.Identity() if c.use_mean_pooling else None
    return ImageEncoder(c, tokens, [block() for _ in range(c.num_hidden_layers)], norm=norm, interpolate=True)


INTERN = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.o_proj": "attention.projection_layer",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
INTERN_NAMES = [
    *(rename(f"layers.{{i}}.layer_scale{n}.lambda1", f"encoder.layer.{{i}}.lambda_{n}") for n in (1, 2)),
    *block_names("layers", "encoder.layer", INTERN),
]

family(
    "internvl_vision",
    config=InternVLVisionConfig,
    tasks={"base": internvl_vision},
    architectures={"InternVLVisionModel": "base"},
    names=INTERN_NAMES,
    prefix="internvl_vision",
)
