"""Qwen3-VL (Bai et al. 2025, arXiv 2511.21631): learned positions in the tower, whose layers speak to the first of the text
(DeepStack); time, height and width turn in turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Embedding, LayerNorm
from ..nn.grid_vision import GridAttention, GridBlock, GridImageText, GridTower, Merger
from ..nn.mlp import MLP
from .grids import GridFields, GridVisionFields, TurnFields, grid_family, mrope
from .qwen3 import Qwen3Config, qwen3


@dataclass(frozen=True, kw_only=True)
class Qwen3VLTextConfig(TurnFields, Qwen3Config):
    """The keys of Qwen3-VL's `text_config`."""

    model_type: ClassVar[str] = "qwen3_vl_text"
    unsaid: ClassVar[tuple[str, ...]] = (
        "use_sliding_window",
        "sliding_window",
        "max_window_layers",
        "tie_word_embeddings",
    )
    vocab_size: Size = 151936
    hidden_size: Size = 4096
    intermediate_size: Size = 22016
    num_hidden_layers: int = 32
    num_attention_heads: Size = 32
    max_position_embeddings: Size = 128000
    rope_parameters: Frozen = rope(500000.0)


@dataclass(frozen=True, kw_only=True)
class Qwen3VisionFields(GridVisionFields):
    """The keys of the tower of Qwen3-VL and of those after it, whose layers do not all speak to the text."""

    depth: int = 27
    hidden_size: Size = 1152
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: Size = 4304
    patch_size: Size = 16
    out_hidden_size: Size = 3584
    num_position_embeddings: Size = 2304
    deepstack_visual_indexes: ClassVar[tuple[int, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Qwen3VLVisionConfig(Qwen3VisionFields):
    """The keys of Qwen3-VL's `vision_config`."""

    model_type: ClassVar[str] = "qwen3_vl_vision"
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Qwen3VLConfig(GridFields):
    """The keys of a Qwen3-VL `config.json`."""

    model_type: ClassVar[str] = "qwen3_vl"
    text_config: Qwen3VLTextConfig = field(default_factory=Qwen3VLTextConfig)
    vision_config: Qwen3VLVisionConfig = field(default_factory=Qwen3VLVisionConfig)


def qwen3_tower(v: Qwen3VisionFields) -> GridTower:
    norm = lambda width=v.hidden_size: LayerNorm(width, 1e-6)
    blocks = tuple(
        GridBlock(
            norm(),
            GridAttention(v.hidden_size, v.num_heads),
            norm(),
            MLP(v.hidden_size, v.intermediate_size, v.hidden_act, bias=True),
        )
        for _ in range(v.depth)
    )
    size, square = (v.hidden_size, v.out_hidden_size, v.spatial_merge_size), v.hidden_size * v.spatial_merge_size**2
    return GridTower(
        v,
        (v.hidden_size, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size),
        blocks,
        Merger(norm(), *size),
        theta=v.rope_parameters["rope_theta"],
        merge=v.spatial_merge_size,
        bias=True,
        positions=Embedding(v.num_position_embeddings, v.hidden_size, axes=(None, "embed")),
        deepstack_mergers=tuple(Merger(norm(square), *size, layer=i) for i in v.deepstack_visual_indexes),
    )


def qwen3_vl(c: Any) -> GridImageText:
    text = qwen3(c.text_config, rope=mrope(c.text_config, mrope_interleaved=True))
    return GridImageText(c, qwen3_tower(c.vision_config), text, framed=True)


MERGERS = (("merger", "merger"), ("deepstack_mergers.{i}", "deepstack_merger_list.{i}"))
PARTS = {"ln_q": "norm", "up_proj": "linear_fc1", "down_proj": "linear_fc2"}
QWEN3_NAMES = [
    rename("model.visual.patch_embed", "model.visual.patch_embed.proj.weight"),
    rename("model.visual.patch_bias", "model.visual.patch_embed.proj.bias"),
    *(
        rename(f"model.visual.{ours}.{a}.{{rest}}", f"model.visual.{theirs}.{b}.{{rest}}")
        for ours, theirs in MERGERS
        for a, b in PARTS.items()
    ),
    rename("model.visual.blocks.{i}.mlp.up_proj.{rest}", "model.visual.blocks.{i}.mlp.linear_fc1.{rest}"),
    rename("model.visual.blocks.{i}.mlp.down_proj.{rest}", "model.visual.blocks.{i}.mlp.linear_fc2.{rest}"),
]

grid_family("Qwen3VL", Qwen3VLConfig, qwen3_vl, names=QWEN3_NAMES)
