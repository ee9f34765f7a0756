"""DeepSeek-V3 (DeepSeek-AI 2024, arXiv 2412.19437): latent attention, and experts chosen in groups without a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size
from ..nn import Block, Decoder
from .decoders import decoder, decoder_family, norm
from .mixtures import GroupedFields, LatentFields, grouped, latent_attention, per_expert, without_next_tokens


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(LatentFields, GroupedFields):
    """The keys of a DeepSeek-V3 `config.json`. The layers that predict further tokens are left out."""

    model_type: ClassVar[str] = "deepseek_v3"
    num_key_value_heads: Size | None = 128
    max_position_embeddings: Size = 4096
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = 256
    n_group: Size | None = 8
    topk_group: Size | None = 4
    routed_scaling_factor: float | int = 2.5
    first_k_dense_replace: int | None = 3
    rope_interleave: bool | None = True


def deepseek_v3(c: DeepseekV3Config) -> Decoder:
    """The decoder: pre-norm blocks of latent attention and, after the first layers, of experts in groups."""
    return decoder(
        c,
        lambda i: Block(latent_attention(c, interleaved=bool(c.rope_interleave)), grouped(c, i), norm(c), norm(c)),
        head_dim=c.qk_rope_head_dim,
    )


decoder_family(
    "DeepseekV3", DeepseekV3Config, deepseek_v3, tags="score", names=per_expert(), ignore_tensors=without_next_tokens
)
