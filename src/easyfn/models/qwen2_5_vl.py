"""Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): Qwen2-VL with windows in most layers of its tower, and time in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..nn import CausalLM, GatedMLP, RMSNorm
from ..nn.grid_vision import GridAttention, GridBlock, GridImageText, GridTower, Merger
from ..registry.family import family
from .image_text import of_text
from .qwen2_vl import GRID_NAMES, PLACES, Qwen2VLTextConfig, in_modules, mrope_text, nested_text


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLTextConfig(Qwen2VLTextConfig):
    """The keys of Qwen2.5-VL's `text_config`."""

    model_type: ClassVar[str] = "qwen2_5_vl_text"


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLVisionConfig(CommonFields):
    """The keys of Qwen2.5-VL's `vision_config`."""

    model_type: ClassVar[str] = "qwen2_5_vl_vision"
    ignored: ClassVar = (
        "in_chans",
        "spatial_patch_size",
        "rope_parameters",
    )  # other names of what is here, or one value
    depth: int = 32
    hidden_size: Size = 3584
    hidden_act: str = "silu"
    intermediate_size: Size = 3420
    num_heads: Size = 16
    in_channels: Size = 3
    patch_size: Size = 14
    spatial_merge_size: Size = 2
    temporal_patch_size: Size = 2
    tokens_per_second: int = 4
    window_size: Size = 112
    out_hidden_size: Size = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig(CommonFields):
    """The keys of a Qwen2.5-VL `config.json`."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    text_config: Qwen2_5_VLTextConfig = field(default_factory=Qwen2_5_VLTextConfig)
    vision_config: Qwen2_5_VLVisionConfig = field(default_factory=Qwen2_5_VLVisionConfig)
    image_token_id: int = 151655
    video_token_id: int = 151656
    tie_word_embeddings: bool = False

    vocab_size: ClassVar = of_text()
    hidden_size: ClassVar = of_text()
    max_position_embeddings: ClassVar = of_text()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return nested_text(data, Qwen2_5_VLTextConfig)


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
    tower = GridTower(v, patch, blocks, merger, merge=v.spatial_merge_size, window=window)
    return GridImageText(c, tower, mrope_text(c.text_config), video_step=float(v.tokens_per_second))


family(
    "qwen2_5_vl",
    config=Qwen2_5_VLConfig,
    tasks={"causal-lm": lambda c: CausalLM(qwen2_5_vl(c), tied=c.tie_word_embeddings)},
    architectures={"Qwen2_5_VLForConditionalGeneration": "causal-lm"},
    names=[*GRID_NAMES, *PLACES],
    modules=in_modules(GRID_NAMES),
    ignore=("vision_start_token_id", "vision_end_token_id", "vision_token_id"),  # of the processor
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"rotary_pos_emb\.inv_freq$"),
    prefix="",
)
