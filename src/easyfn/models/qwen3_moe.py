"""Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388): Qwen3 with many small experts in the place of most MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, alias, head_dim
from ..nn import Block, Decoder, Experts, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import dense, is_sparse, per_expert


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(LlamaFields):
    """The keys of a Qwen3-MoE `config.json`. Files say `num_experts` or, today, `num_local_experts`."""

    model_type: ClassVar[str] = "qwen3_moe"
    num_experts = alias("num_local_experts")
    num_key_value_heads: Size | None = 4
    max_position_embeddings: Size = 32768
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    moe_intermediate_size: Size = 768
    num_local_experts: int = 128
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = None
    router_aux_loss_coef: float = 0.001


def qwen3_moe(c: Qwen3MoeConfig, **own: Any) -> Decoder:
    """The decoder: Qwen3's attention and, in every sparse layer, softmax over all experts and then the best of them."""
    bias, window = c.attention_bias, c.sliding_window if c.use_sliding_window else None

    def sparse() -> SparseMoE:
        return SparseMoE(
            Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=c.norm_topk_prob),
            Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act),
        )

    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, qk_norm=RMSNorm(head_dim(c), c.rms_norm_eps), window=window),
            sparse() if is_sparse(c, i) else dense(c),
            norm(c),
            norm(c),
        ),
        **own,
    )


decoder_family("Qwen3Moe", Qwen3MoeConfig, qwen3_moe, tags="score", answers="transformer", names=per_expert())
