"""GLM-4.7-Flash (Z.ai 2026): GLM-4.5's experts behind DeepSeek's latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size
from ..nn import Block, Decoder
from .decoders import decoder, decoder_family, norm
from .mixtures import (
    GroupedFields,
    LatentFields,
    grouped,
    latent_attention,
    per_expert,
    without_next_tokens,
)


@dataclass(frozen=True, kw_only=True)
class Glm4MoeLiteConfig(LatentFields, GroupedFields):
    """The keys of a GLM-4.7-Flash `config.json`. Without `mlp_layer_types`, the first layer is dense."""

    model_type: ClassVar[str] = "glm4_moe_lite"
    unsaid: ClassVar[tuple[str, ...]] = ("first_k_dense_replace",)
    num_key_value_heads: Size | None = 20
    max_position_embeddings: Size = 202752
    rms_norm_eps: float = 1e-5
    moe_intermediate_size: Size = 1536
    n_routed_experts: Size = 64
    num_experts_per_tok: Size | None = 4
    routed_scaling_factor: float | int = 1.8
    first_k_dense_replace: int | None = 1
    mlp_layer_types: tuple[str, ...] | None = None
    q_lora_rank: Size | None = 768
    qk_nope_head_dim: Size = 192
    v_head_dim: Size = 256
    rope_interleave: bool | None = True


def glm4_moe_lite(c: Glm4MoeLiteConfig) -> Decoder:
    """The decoder: pre-norm blocks of latent attention and of experts, or of the one or other dense layer."""
    return decoder(
        c,
        lambda i: Block(
            latent_attention(c, interleaved=bool(c.rope_interleave)),
            grouped(c, i),
            norm(c),
            norm(c),
        ),
        head_dim=c.qk_rope_head_dim,
    )


decoder_family(
    "Glm4MoeLite",
    Glm4MoeLiteConfig,
    glm4_moe_lite,
    classifies=False,
    names=per_expert(),
    ignore_tensors=without_next_tokens,
)
