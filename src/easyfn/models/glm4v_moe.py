"""GLM-4.5V (GLM-V Team 2025, arXiv 2507.01006): GLM-4.1V's tower, and the decoder of GLM-4.5 with its experts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..nn.grid_vision import GridImageText
from .glm4_moe import glm4_moe
from .glm4v import IGNORED, TOWER, Glm4vConfig, Glm4vVisionConfig, glm4v_tower
from .grids import grid_family, mrope, section_apart, section_inside
from .mixtures import GroupedFields, per_expert, without_next_tokens


@dataclass(frozen=True, kw_only=True)
class Glm4vMoeTextConfig(GroupedFields):
    """The keys of GLM-4.5V's `text_config`."""

    model_type: ClassVar[str] = "glm4v_moe_text"
    use_qk_norm: ClassVar[bool] = False
    vocab_size: Size = 151424
    hidden_size: Size = 4096
    intermediate_size: Size = 10944
    num_hidden_layers: int = 46
    num_attention_heads: Size = 96
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 65536
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(partial_rotary_factor=0.5)
    attention_bias: bool = True
    moe_intermediate_size: Size = 1408
    n_routed_experts: Size = 128
    first_k_dense_replace: int | None = 1
    router_aux_loss_coef: float = 0.0001
    mrope_section: tuple[int, ...] = (8, 12, 12)

    denormalize: ClassVar = staticmethod(section_inside)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return section_apart(GroupedFields.normalize(data))


@dataclass(frozen=True, kw_only=True)
class Glm4vMoeVisionConfig(Glm4vVisionConfig):
    """The keys of GLM-4.5V's `vision_config`."""

    model_type: ClassVar[str] = "glm4v_moe_vision"


@dataclass(frozen=True, kw_only=True)
class Glm4vMoeConfig(Glm4vConfig):
    """The keys of a GLM-4.5V `config.json`."""

    model_type: ClassVar[str] = "glm4v_moe"
    text_config: Glm4vMoeTextConfig = field(default_factory=Glm4vMoeTextConfig)  # type: ignore[assignment]
    vision_config: Glm4vMoeVisionConfig = field(default_factory=Glm4vMoeVisionConfig)
    image_token_id: int = 151363
    video_token_id: int = 151364


def glm4v_moe(c: Glm4vMoeConfig) -> GridImageText:
    text = glm4_moe(c.text_config, rope=mrope(c.text_config))
    return GridImageText(c, glm4v_tower(c.vision_config), text, framed=True, video_token=c.image_token_id)


grid_family(
    "Glm4vMoe",
    Glm4vMoeConfig,
    glm4v_moe,
    names=[*TOWER, *per_expert()],
    modules=TOWER,
    ignore=IGNORED,
    ignore_tensors=lambda c: without_next_tokens(c.text_config),
)
