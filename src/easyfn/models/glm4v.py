"""GLM-4.1V (GLM-V Team 2025, arXiv 2507.01006): images and videos of any size, learned places stretched, and GLM-4's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size, alias
from ..names.rules import rename
from ..nn import Embedding, GatedMLP, RMSNorm
from ..nn.grid_vision import Downsampler, GridAttention, GridBlock, GridImageText, GridTower
from .glm4 import NAMES, glm4
from .grids import GridFields, GridVisionFields, grid_family, mrope, section_apart, section_inside


@dataclass(frozen=True, kw_only=True)
class Glm4vTextConfig(LlamaFields):
    """The keys of GLM-4.1V's `text_config`."""

    model_type: ClassVar[str] = "glm4v_text"
    unsaid: ClassVar[tuple[str, ...]] = ("tie_word_embeddings", "head_dim")  # the whole model's config has the first
    attention_bias: ClassVar[bool] = True
    vocab_size: Size = 151552
    hidden_size: Size = 4096
    intermediate_size: Size = 13696
    num_hidden_layers: int = 40
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 2
    max_position_embeddings: Size = 32768
    rms_norm_eps: float = 1e-5
    mrope_section: tuple[int, ...] = (8, 12, 12)
    pad_token_id: int | None = None

    denormalize: ClassVar = staticmethod(section_inside)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """transformers rotates by a `head_dim` that its projections do not have."""
        only(data, "head_dim", data.get("hidden_size", 4096) // data.get("num_attention_heads", 32))
        data.pop("head_dim", None)
        return section_apart(data)


@dataclass(frozen=True, kw_only=True)
class Glm4vVisionConfig(GridVisionFields):
    """The keys of GLM-4.1V's `vision_config`. A block's MLP is as wide as what comes out; `intermediate_size` is the merger's."""

    model_type: ClassVar[str] = "glm4v_vision"
    depth: int = 24
    num_heads: Size = 12
    hidden_size: Size = 1536
    hidden_act: str = "silu"
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    image_size: Size = 336
    rms_norm_eps: float = 1e-5
    out_hidden_size: Size = 4096
    intermediate_size: Size = 13696

    num_attention_heads = alias("num_heads")
    num_hidden_layers = alias("depth")


@dataclass(frozen=True, kw_only=True)
class Glm4vConfig(GridFields):
    """The keys of a GLM-4.1V `config.json`."""

    model_type: ClassVar[str] = "glm4v"
    text_ties: ClassVar[bool] = True
    text_config: Glm4vTextConfig = field(default_factory=Glm4vTextConfig)
    vision_config: Glm4vVisionConfig = field(default_factory=Glm4vVisionConfig)
    image_token_id: int = 151343
    video_token_id: int = 151344


def tower(
    v: Any, attention: Callable[[], GridAttention], mlp: Callable[[], GatedMLP], wide: int, **own: Any
) -> GridTower:
    """The tower of GLM-4.1V and those after it; `wide` is the width of the merger's MLP."""
    norm = lambda: RMSNorm(v.hidden_size, v.rms_norm_eps)
    return GridTower(
        v,
        (v.hidden_size, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size),
        tuple(GridBlock(norm(), attention(), norm(), mlp()) for _ in range(v.depth)),
        Downsampler(norm(), v.hidden_size, v.out_hidden_size, v.spatial_merge_size, wide, v.hidden_act),
        theta=v.rope_parameters["rope_theta"],
        merge=v.spatial_merge_size,
        bias=True,
        **own,
    )


def glm4v_tower(v: Any) -> GridTower:
    bias, size = (v.attention_bias, False), v.hidden_size
    return tower(
        v,
        lambda: GridAttention(size, v.num_heads, bias=bias, dropout=v.attention_dropout),
        lambda: GatedMLP(size, v.out_hidden_size, v.hidden_act),
        v.intermediate_size,
        positions=Embedding((v.image_size // v.patch_size) ** 2, size, axes=(None, "embed")),
        cubic=True,
        patch_norm=RMSNorm(size, v.rms_norm_eps),
    )


def glm4v(c: Any) -> GridImageText:
    """The tokens of a video's frames are those of images: a prompt has one or the other."""
    text = glm4(c.text_config, rope=mrope(c.text_config))
    return GridImageText(c, glm4v_tower(c.vision_config), text, framed=True, video_token=c.image_token_id)


TOWER = [
    rename("model.visual.patch_embed", "model.visual.patch_embed.proj.weight"),
    rename("model.visual.patch_bias", "model.visual.patch_embed.proj.bias"),
    rename("model.visual.patch_norm.{rest}", "model.visual.post_conv_layernorm.{rest}"),
    rename("model.visual.pos_embed.{rest}", "model.visual.embeddings.position_embedding.{rest}"),
    rename("model.visual.merger.post_layernorm.{rest}", "model.visual.post_layernorm.{rest}"),
    rename("model.visual.merger.downsample.{rest}", "model.visual.downsample.{rest}"),
]
# Of the processor.
IGNORED = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")

grid_family("Glm4v", Glm4vConfig, glm4v, names=[*TOWER, *NAMES], ignore=IGNORED)
