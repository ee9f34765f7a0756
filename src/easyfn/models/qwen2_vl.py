"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): images and videos of any size, positions of time, height and width."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..config.fields import Size
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import LayerNorm
from ..nn.grid_vision import GridAttention, GridBlock, GridImageText, GridTower, Merger
from ..nn.mlp import MLP
from .grids import (
    GRID_NAMES,
    MODULES,
    PLACES,
    GridFields,
    GridVisionFields,
    grid_family,
    in_modules,
    mrope,
    section_apart,
    section_inside,
)
from .qwen2 import Qwen2Config, qwen2


@dataclass(frozen=True, kw_only=True)
class Qwen2VLTextConfig(Qwen2Config):
    """The keys of Qwen2-VL's `text_config`."""

    model_type: ClassVar[str] = "qwen2_vl_text"
    unsaid: ClassVar[tuple[str, ...]] = ("tie_word_embeddings",)  # the whole model's config has it
    vocab_size: Size = 152064
    hidden_size: Size = 8192
    intermediate_size: Size = 29568
    num_hidden_layers: int = 80
    num_attention_heads: Size = 64
    num_key_value_heads: Size | None = 8
    rms_norm_eps: float = 1e-5
    max_window_layers: int = 80
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=1000000.0)
    mrope_section: tuple[int, ...] = (16, 24, 24)

    normalize: ClassVar = staticmethod(section_apart)
    denormalize: ClassVar = staticmethod(section_inside)


@dataclass(frozen=True, kw_only=True)
class Qwen2VLVisionConfig(GridVisionFields):
    """The keys of Qwen2-VL's `vision_config`; `hidden_size` is what comes out."""

    model_type: ClassVar[str] = "qwen2_vl_vision"
    embed_dim: Size = 1280
    hidden_size: Size = 3584
    hidden_act: str = "quick_gelu"
    mlp_ratio: int = 4


@dataclass(frozen=True, kw_only=True)
class Qwen2VLConfig(GridFields):
    """The keys of a Qwen2-VL `config.json`."""

    model_type: ClassVar[str] = "qwen2_vl"
    text_ties: ClassVar[bool] = True
    text_config: Qwen2VLTextConfig = field(default_factory=Qwen2VLTextConfig)
    vision_config: Qwen2VLVisionConfig = field(default_factory=Qwen2VLVisionConfig)


def qwen2_vl(c: Qwen2VLConfig) -> GridImageText:
    v = c.vision_config
    norm = lambda: LayerNorm(v.embed_dim, 1e-6)
    blocks = tuple(
        GridBlock(
            norm(),
            GridAttention(v.embed_dim, v.num_heads),
            norm(),
            MLP(v.embed_dim, v.embed_dim * v.mlp_ratio, v.hidden_act, bias=True),
        )
        for _ in range(v.depth)
    )
    patch = (v.embed_dim, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    merger = Merger(norm(), v.embed_dim, v.hidden_size, v.spatial_merge_size)
    return GridImageText(
        c,
        GridTower(v, patch, blocks, merger, merge=v.spatial_merge_size, theta=v.rope_parameters["rope_theta"]),
        qwen2(c.text_config, rope=mrope(c.text_config)),
    )


MLP_NAMES = [
    rename("model.visual.blocks.{i}.mlp.up_proj.{rest}", "visual.blocks.{i}.mlp.fc1.{rest}"),
    rename("model.visual.blocks.{i}.mlp.down_proj.{rest}", "visual.blocks.{i}.mlp.fc2.{rest}"),
]

grid_family(
    "Qwen2VL",
    Qwen2VLConfig,
    qwen2_vl,
    names=[*GRID_NAMES, *MLP_NAMES, *PLACES],
    modules=in_modules([*GRID_NAMES, *MLP_NAMES]),
    aliases=MODULES,
)
