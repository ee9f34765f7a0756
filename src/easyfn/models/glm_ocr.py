"""GLM-OCR (Z.ai 2026): GLM-4.1V in small, for documents; no learned places, normed queries and keys in its tower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..config.fields import Size
from ..nn import GatedMLP, RMSNorm
from ..nn.grid_vision import GridAttention, GridImageText
from .glm4 import NAMES, glm4
from .glm4v import IGNORED, TOWER, Glm4vConfig, Glm4vTextConfig, Glm4vVisionConfig, tower
from .grids import grid_family, mrope, section_apart
from .mixtures import without_next_tokens


@dataclass(frozen=True, kw_only=True)
class GlmOcrTextConfig(Glm4vTextConfig):
    """The keys of GLM-OCR's `text_config`."""

    model_type: ClassVar[str] = "glm_ocr_text"
    unsaid: ClassVar[tuple[str, ...]] = ("tie_word_embeddings",)
    attention_bias: ClassVar[bool] = False
    vocab_size: Size = 59392
    hidden_size: Size = 1024
    intermediate_size: Size = 4096
    num_hidden_layers: int = 16
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072

    normalize: ClassVar = staticmethod(section_apart)


@dataclass(frozen=True, kw_only=True)
class GlmOcrVisionConfig(Glm4vVisionConfig):
    """The keys of GLM-OCR's `vision_config`. `image_size` says nothing: there are no learned places."""

    model_type: ClassVar[str] = "glm_ocr_vision"
    hidden_size: Size = 1024
    attention_bias: bool = True
    num_heads: Size = 16
    out_hidden_size: Size = 1536
    intermediate_size: Size = 4096


@dataclass(frozen=True, kw_only=True)
class GlmOcrConfig(Glm4vConfig):
    """The keys of a GLM-OCR `config.json`."""

    model_type: ClassVar[str] = "glm_ocr"
    text_config: GlmOcrTextConfig = field(default_factory=GlmOcrTextConfig)
    vision_config: GlmOcrVisionConfig = field(default_factory=GlmOcrVisionConfig)
    image_token_id: int = 59280
    video_token_id: int = 59281


def glm_ocr(c: GlmOcrConfig) -> GridImageText:
    v, bias = c.vision_config, c.vision_config.attention_bias
    norm = lambda: RMSNorm(v.hidden_size // v.num_heads, v.rms_norm_eps)
    attention = lambda: GridAttention(
        v.hidden_size, v.num_heads, bias=(bias, bias), qk_norm=(norm(), norm()), dropout=v.attention_dropout
    )
    mlp = lambda: GatedMLP(v.hidden_size, v.intermediate_size, v.hidden_act, bias=bias)
    visual = tower(v, attention, mlp, v.out_hidden_size * v.in_channels)
    text = glm4(c.text_config, rope=mrope(c.text_config))
    return GridImageText(c, visual, text, framed=True, video_token=c.image_token_id)


grid_family(
    "GlmOcr",
    GlmOcrConfig,
    glm_ocr,
    names=[*TOWER, *NAMES],
    ignore=IGNORED,
    ignore_tensors=lambda c: without_next_tokens(c.text_config),
)
