"""Solar Open (Upstage 2026, arXiv 2601.07022): GLM-4.5 with experts in every layer and heads rotated as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Size, alias, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import GroupedFields, grouped, per_expert


@dataclass(frozen=True, kw_only=True)
class SolarOpenConfig(GroupedFields):
    """The keys of a Solar Open `config.json`."""

    model_type: ClassVar[str] = "solar_open"
    unsaid: ClassVar[tuple[str, ...]] = ("first_k_dense_replace",)
    num_local_experts = alias("n_routed_experts")
    intermediate_size: ClassVar[int] = 0  # type: ignore[misc]  # of dense layers, which there are none
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1000000.0)
    moe_intermediate_size: Size = 1280
    n_routed_experts: Size = 128
    ignored: ClassVar[tuple[str, ...]] = (*GroupedFields.ignored, "use_qk_norm", "intermediate_size")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "first_k_dense_replace", 0)
        only(data, "use_qk_norm", False)
        return GroupedFields.normalize(data)


def solar_open(c: SolarOpenConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention and of experts."""
    return decoder(c, lambda i: Block(attention(c, out_bias=False), grouped(c, i), norm(c), norm(c)), partial=True)


decoder_family("SolarOpen", SolarOpenConfig, solar_open, names=per_expert(), classifies=False)
