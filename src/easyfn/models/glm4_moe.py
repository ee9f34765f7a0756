"""GLM-4.5 (GLM-4.5 Team 2025, arXiv 2508.06471): DeepSeek-V3's experts behind grouped-query attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size, head_dim, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import GroupedFields, grouped, per_expert, without_next_tokens


@dataclass(frozen=True, kw_only=True)
class Glm4MoeConfig(GroupedFields):
    """The keys of a GLM-4.5 `config.json`. Half of each head is rotated where the file does not say how much."""

    model_type: ClassVar[str] = "glm4_moe"
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(partial_rotary_factor=0.5)
    moe_intermediate_size: Size = 1408
    n_routed_experts: Size = 128
    first_k_dense_replace: int | None = 1
    use_qk_norm: bool = False


def glm4_moe(c: Any, **own: Any) -> Decoder:
    """The decoder: pre-norm blocks of attention, rotated in part, and, after the first layer, of experts."""
    qk_norm = RMSNorm(head_dim(c), c.rms_norm_eps) if c.use_qk_norm else None
    return decoder(
        c,
        lambda i: Block(attention(c, out_bias=False, qk_norm=qk_norm), grouped(c, i), norm(c), norm(c)),
        partial=True,
        **own,
    )


decoder_family(
    "Glm4Moe", Glm4MoeConfig, glm4_moe, classifies=False, names=per_expert(), ignore_tensors=without_next_tokens
)
