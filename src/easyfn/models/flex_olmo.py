"""FlexOlmo (Shi et al. 2025, arXiv 2507.07024): OLMo 2's blocks, whose norms come after the parts, with OLMoE's experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, alias, rope
from ..core.frozen import Frozen
from ..nn import Decoder, Experts, PostNormBlock, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import per_expert, row_norms


@dataclass(frozen=True, kw_only=True)
class FlexOlmoConfig(LlamaFields):
    """The keys of a FlexOlmo `config.json`."""

    model_type: ClassVar[str] = "flex_olmo"
    num_local_experts = alias("num_experts")
    max_position_embeddings: Size = 4096
    rope_parameters: Frozen = rope(500000.0)
    attention_bias: bool = False
    num_experts: Size = 7
    num_experts_per_tok: Size = 5
    norm_topk_prob: bool = False
    router_aux_loss_coef: float = 0.01


def flex_olmo(c: FlexOlmoConfig) -> Decoder:
    """The decoder: blocks of attention with normed rows and of experts, each with its norm after it."""
    bias = c.attention_bias
    return decoder(
        c,
        lambda i: PostNormBlock(
            attention(c, qkv_bias=bias, out_bias=bias, qk_norm=row_norms(c), normed="rows"),
            SparseMoE(
                Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=c.norm_topk_prob),
                Experts(c.num_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
            ),
            norm(c),
            norm(c),
        ),
    )


decoder_family("FlexOlmo", FlexOlmoConfig, flex_olmo, classifies=False, names=per_expert())
