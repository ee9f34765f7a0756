"""DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv 2512.02556): DeepSeek-V3 whose queries read the keys that an indexer chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size
from ..nn import Block, Decoder
from .decoders import decoder, decoder_family, norm
from .mixtures import (
    INDEXED,
    IndexedFields,
    grouped,
    indexer,
    latent_attention,
    per_expert,
    without_next_tokens,
)


@dataclass(frozen=True, kw_only=True)
class DeepseekV32Config(IndexedFields):
    """The keys of a DeepSeek-V3.2 `config.json`."""

    model_type: ClassVar[str] = "deepseek_v32"
    vocab_size: Size = 129280
    hidden_size: Size = 7168
    intermediate_size: Size = 18432
    num_hidden_layers: int = 61
    num_attention_heads: Size = 128
    num_key_value_heads: Size | None = 128
    max_position_embeddings: Size = 163840
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = 256
    n_group: Size | None = 8
    topk_group: Size | None = 4
    routed_scaling_factor: float | int = 2.5
    first_k_dense_replace: int | None = 3
    index_n_heads: Size = 64


def deepseek_v32(c: DeepseekV32Config) -> Decoder:
    """The decoder: pre-norm blocks of latent attention to chosen keys and, after the first layers, of experts in groups."""
    return decoder(
        c,
        lambda i: Block(latent_attention(c, indexer=indexer(c)), grouped(c, i), norm(c), norm(c)),
        head_dim=c.qk_rope_head_dim,
    )


decoder_family(
    "DeepseekV32",
    DeepseekV32Config,
    deepseek_v32,
    classifies=False,
    names=per_expert(),
    ignore=INDEXED,
    ignore_tensors=without_next_tokens,
)
