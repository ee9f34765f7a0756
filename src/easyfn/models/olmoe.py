"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): queries and keys normed as whole rows, experts in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, alias
from ..nn import Block, Decoder, Experts, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import per_expert, row_norms


@dataclass(frozen=True, kw_only=True)
class OlmoeConfig(LlamaFields):
    """The keys of an OLMoE `config.json`. `clip_qkv` bounds queries, keys and values."""

    model_type: ClassVar[str] = "olmoe"
    num_local_experts = alias("num_experts")
    max_position_embeddings: Size = 4096
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    clip_qkv: float | int | None = None
    num_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = False
    router_aux_loss_coef: float = 0.01


def olmoe(c: OlmoeConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention with normed rows and of experts, softmax over all of them first."""
    bias = c.attention_bias
    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, qk_norm=row_norms(c), normed="rows", clip=c.clip_qkv),
            SparseMoE(
                Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=c.norm_topk_prob),
                Experts(c.num_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
            ),
            norm(c),
            norm(c),
        ),
    )


decoder_family("Olmoe", OlmoeConfig, olmoe, classifies=False, names=per_expert())
