"""Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): Qwen2-VL with windows in most layers of its tower, and time in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..config.fields import Size
from ..nn import GatedMLP, RMSNorm
from ..nn.grid_vision import GridAttention, GridBlock, GridImageText, GridTower, Merger
from .grids import GRID_NAMES, MODULES, PLACES, GridFields, GridVisionFields, grid_family, in_modules, mrope
from .qwen2 import qwen2
from .qwen2_vl import Qwen2VLTextConfig


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLTextConfig(Qwen2VLTextConfig):
    """The keys of Qwen2.5-VL's `text_config`."""

    model_type: ClassVar[str] = "qwen2_5_vl_text"


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLVisionConfig(GridVisionFields):
    """The keys of Qwen2.5-VL's `vision_config`."""

    model_type: ClassVar[str] = "qwen2_5_vl_vision"
    hidden_size: Size = 3584
    hidden_act: str = "silu"
    intermediate_size: Size = 3420
    tokens_per_second: int = 4
    window_size: Size = 112
    out_hidden_size: Size = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig(GridFields):
    """The keys of a Qwen2.5-VL `config.json`."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    text_ties: ClassVar[bool] = True
    text_config: Qwen2_5_VLTextConfig = field(default_factory=Qwen2_5_VLTextConfig)
    vision_config: Qwen2_5_VLVisionConfig = field(default_factory=Qwen2_5_VLVisionConfig)


def qwen2_5_vl(c: Qwen2_5_VLConfig) -> GridImageText:
    v = c.vision_config
    norm = lambda: RMSNorm(v.hidden_size, 1e-6)
    blocks = tuple(
        GridBlock(
            norm(),
            GridAttention(v.hidden_size, v.num_heads, windowed=i not in v.fullatt_block_indexes),
            norm(),
            GatedMLP(v.hidden_size, v.intermediate_size, v.hidden_act, bias=True),
        )
        for i in range(v.depth)
    )
    patch = (v.hidden_size, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    merger = Merger(norm(), v.hidden_size, v.out_hidden_size, v.spatial_merge_size)
    window = v.window_size // v.spatial_merge_size // v.patch_size * v.spatial_merge_size
    tower = GridTower(
        v, patch, blocks, merger, merge=v.spatial_merge_size, window=window, theta=v.rope_parameters["rope_theta"]
    )
    text = qwen2(c.text_config, rope=mrope(c.text_config))
    return GridImageText(c, tower, text, video_step=float(v.tokens_per_second))


grid_family(
    "Qwen2_5_VL",
    Qwen2_5_VLConfig,
    qwen2_5_vl,
    names=[*GRID_NAMES, *PLACES],
    modules=in_modules(GRID_NAMES),
    aliases=MODULES,
)
