"""The text tower of CLIP (Radford et al. 2021, arXiv 2103.00020): a causal pre-norm encoder that pools its end token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import CommonFields, Size
from ..names.rules import rename
from ..nn.towers import Projected, TextTower
from ..registry.family import family
from .vision import TOWER, block_names, under


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(CommonFields):
    """The keys of CLIP's `text_config`."""

    model_type: ClassVar[str] = "clip_text_model"
    ignored: ClassVar = ("initializer_factor",)
    vocab_size: Size = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    projection_dim: Size | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: Size = 8
    max_position_embeddings: Size = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    eos_token_id: int = 49407


TEXT_NAMES = [
    rename("token_embedding.{rest}", "embeddings.token_embedding.{rest}"),
    rename("position_embedding.{rest}", "embeddings.position_embedding.{rest}"),
    *block_names("layers", "encoder.layers", TOWER),
]


def clip_text(c: CLIPTextConfig) -> TextTower:
    return TextTower(c, causal=True)


def _names(model: Any) -> list[Any]:
    if isinstance(model, TextTower):
        return TEXT_NAMES
    return [*under(TEXT_NAMES, "model", "text_model"), rename("projection.{rest}", "text_projection.{rest}")]


family(
    "clip_text_model",
    config=CLIPTextConfig,
    tasks={"base": clip_text, "text-projection": lambda c: Projected(clip_text(c), "text_embeds")},
    architectures={"CLIPTextModel": "base", "CLIPTextModelWithProjection": "text-projection"},
    names=_names,
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="text_model",
)
