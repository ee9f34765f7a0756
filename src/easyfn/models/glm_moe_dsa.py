"""GLM-5 (Z.ai 2026): DeepSeek-V3.2's attention to chosen keys, whose choice several layers may share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size
from ..nn import ChoosingBlock, Decoder
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

LETTERS = {"F": "full", "S": "shared"}


@dataclass(frozen=True, kw_only=True)
class GlmMoeDsaConfig(IndexedFields):
    """The keys of a GLM-5 `config.json`.

    `indexer_types` says of each layer whether it has an indexer (`full`) or attends to what the last one chose (`shared`);
    without it `index_topk_pattern` does, or else every `index_topk_freq`-th layer has one, counted from the one after
    `index_skip_topk_offset - 2`.
    """

    model_type: ClassVar[str] = "glm_moe_dsa"
    unsaid: ClassVar[tuple[str, ...]] = ("index_topk_freq", "index_skip_topk_offset", "index_topk_pattern")
    vocab_size: Size = 154880
    hidden_size: Size = 6144
    intermediate_size: Size = 12288
    num_hidden_layers: int = 78
    num_attention_heads: Size = 64
    num_key_value_heads: Size | None = 64
    max_position_embeddings: Size = 202752
    rms_norm_eps: float = 1e-5
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = 256
    routed_scaling_factor: float | int = 2.5
    first_k_dense_replace: int | None = 3
    q_lora_rank: Size = 2048
    qk_nope_head_dim: Size = 192
    v_head_dim: Size = 256
    indexer_types: tuple[str, ...] | None = None
    index_topk_pattern: str | tuple[str, ...] | None = None
    index_topk_freq: int = 1
    index_skip_topk_offset: int = 2


def indexer_types(c: GlmMoeDsaConfig) -> tuple[str, ...]:
    """Of every layer `full` or `shared`. Raises `ValueError` where a layer has another, or the first nothing to share."""
    layers, every, offset = range(c.num_hidden_layers), max(c.index_topk_freq, 1), c.index_skip_topk_offset
    derived = tuple("shared" if max(i - offset + 1, 0) % every else "full" for i in layers)
    found = c.indexer_types or c.index_topk_pattern or derived
    kinds = tuple(LETTERS.get(kind, kind) for kind in found)
    if len(kinds) != len(layers) or set(kinds) - set(LETTERS.values()) or kinds[:1] == ("shared",):
        raise ValueError(
            f"glm_moe_dsa: indexer_types says full or shared of each of {len(layers)} layers, and full of the first, not "
            f"{', '.join(kinds)}"
        )
    return kinds


def glm_moe_dsa(c: GlmMoeDsaConfig) -> Decoder:
    """The decoder: pre-norm blocks of latent attention to chosen keys and, after the first layers, of experts."""
    kinds = indexer_types(c)

    def block(i: int) -> ChoosingBlock:
        own = indexer(c, interleaved=True) if kinds[i] == "full" else None
        return ChoosingBlock(latent_attention(c, indexer=own), grouped(c, i), norm(c), norm(c))

    return decoder(c, block, head_dim=c.qk_rope_head_dim)


decoder_family(
    "GlmMoeDsa",
    GlmMoeDsaConfig,
    glm_moe_dsa,
    classifies=False,
    names=per_expert(),
    ignore=INDEXED,
    ignore_tensors=without_next_tokens,
)
