"""The text tower of SigLIP (Zhai et al. 2023, arXiv 2303.15343): reads both ways and pools the last column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import CommonFields, Size
from ..nn import Linear
from ..nn.towers import TextTower
from ..registry.family import family
from .clip_text_model import TEXT_NAMES


@dataclass(frozen=True, kw_only=True)
class SiglipTextConfig(CommonFields):
    """The keys of SigLIP's `text_config`."""

    model_type: ClassVar[str] = "siglip_text_model"
    vocab_size: Size = 32000
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: int = 12
    num_attention_heads: Size = 12
    max_position_embeddings: Size = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    projection_size: Size | None = None


def siglip_text(c: SiglipTextConfig) -> TextTower:
    head = Linear(c.hidden_size, c.projection_size or c.hidden_size, True, axes=(None, "embed"), role="head")
    return TextTower(c, causal=False, head=head)


family(
    "siglip_text_model",
    config=SiglipTextConfig,
    tasks={"base": siglip_text},
    architectures={"SiglipTextModel": "base"},
    names=TEXT_NAMES,
    ignore_tensors=(r"embeddings\.position_ids$",),
    prefix="text_model",
)
