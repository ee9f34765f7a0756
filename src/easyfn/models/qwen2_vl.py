"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): images and videos of any size, positions of time, height and width."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..core.frozen import Frozen
from ..names.rules import Rule, rename
from ..nn import CausalLM, Decoder, LayerNorm
from ..nn.grid_vision import GridAttention, GridBlock, GridImageText, GridTower, Merger
from ..nn.mlp import MLP
from ..registry.family import family
from .image_text import of_text
from .qwen2 import Qwen2Config, qwen2


@dataclass(frozen=True, kw_only=True)
class Qwen2VLTextConfig(Qwen2Config):
    """The keys of Qwen2-VL's `text_config`."""

    model_type: ClassVar[str] = "qwen2_vl_text"
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

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        rope = dict(data.pop("rope_scaling", None) or data.get("rope_parameters") or {})
        if "mrope_section" in rope:
            data["mrope_section"] = rope.pop("mrope_section")
        if "mrope" in (rope.get("type"), rope.get("rope_type")):
            rope = {**rope, "type": None, "rope_type": "default"}
        return {**data, "rope_parameters": {k: v for k, v in rope.items() if v is not None}}

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        section = data.pop("mrope_section")
        del data["tie_word_embeddings"]  # the whole model's config has it
        return {**data, "rope_parameters": {**data["rope_parameters"], "mrope_section": section}}


@dataclass(frozen=True, kw_only=True)
class Qwen2VLVisionConfig(CommonFields):
    """The keys of Qwen2-VL's `vision_config`; `hidden_size` is what comes out."""

    model_type: ClassVar[str] = "qwen2_vl_vision"
    ignored: ClassVar = (
        "in_chans",
        "spatial_patch_size",
        "rope_parameters",
    )  # other names of what is here, or one value
    depth: int = 32
    embed_dim: Size = 1280
    hidden_size: Size = 3584
    hidden_act: str = "quick_gelu"
    mlp_ratio: int = 4
    num_heads: Size = 16
    in_channels: Size = 3
    patch_size: Size = 14
    spatial_merge_size: Size = 2
    temporal_patch_size: Size = 2


@dataclass(frozen=True, kw_only=True)
class Qwen2VLConfig(CommonFields):
    """The keys of a Qwen2-VL `config.json`."""

    model_type: ClassVar[str] = "qwen2_vl"
    text_config: Qwen2VLTextConfig = field(default_factory=Qwen2VLTextConfig)
    vision_config: Qwen2VLVisionConfig = field(default_factory=Qwen2VLVisionConfig)
    image_token_id: int = 151655
    video_token_id: int = 151656
    tie_word_embeddings: bool = False

    vocab_size: ClassVar = of_text()
    hidden_size: ClassVar = of_text()
    max_position_embeddings: ClassVar = of_text()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return nested_text(data, Qwen2VLTextConfig)


def nested_text(data: dict[str, Any], text: type) -> dict[str, Any]:
    """Older files hold the keys of the text at the top."""
    if data.get("text_config") is None:
        own = {f.name for f in dataclasses.fields(text)} - {"extra", "generation", "num_labels", "tie_word_embeddings"}
        own |= {"rope_scaling", "rope_theta"}
        data["text_config"] = {key: data.pop(key) for key in list(data) if key in own}
    if data["text_config"].get("tie_word_embeddings"):
        data["tie_word_embeddings"] = True
    return data


def mrope_text(c: Any) -> Decoder:
    return qwen2(c, rope={"default": {**c.rope_parameters, "mrope_section": c.mrope_section}})


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
    return GridImageText(c, GridTower(v, patch, blocks, merger, merge=v.spatial_merge_size), mrope_text(c.text_config))


GRID_NAMES: list[Rule] = [
    rename("model.visual.patch_embed", "visual.patch_embed.proj.weight"),
    rename("model.visual.merger.up_proj.{rest}", "visual.merger.mlp.0.{rest}"),
    rename("model.visual.merger.down_proj.{rest}", "visual.merger.mlp.2.{rest}"),
]
PLACES: list[Rule] = [
    rename("model.visual.{rest}", "visual.{rest}"),
    rename("model.language_model.{rest}", "model.{rest}"),
]
MLP_NAMES = [
    rename("model.visual.blocks.{i}.mlp.up_proj.{rest}", "visual.blocks.{i}.mlp.fc1.{rest}"),
    rename("model.visual.blocks.{i}.mlp.down_proj.{rest}", "visual.blocks.{i}.mlp.fc2.{rest}"),
]


def in_modules(rules: list[Rule]) -> list[Rule]:
    """The rules of transformers' module, where both halves are in `model`, from those of the files."""
    return [r._replace(theirs=tuple(f"model.{name}" for name in r.theirs)) for r in rules]


family(
    "qwen2_vl",
    config=Qwen2VLConfig,
    tasks={"causal-lm": lambda c: CausalLM(qwen2_vl(c), tied=c.tie_word_embeddings)},
    architectures={"Qwen2VLForConditionalGeneration": "causal-lm"},
    names=[*GRID_NAMES, *MLP_NAMES, *PLACES],
    modules=in_modules([*GRID_NAMES, *MLP_NAMES]),
    ignore=("vision_start_token_id", "vision_end_token_id", "vision_token_id"),  # of the processor
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"rotary_pos_emb\.inv_freq$"),
    prefix="",
)
