"""Cohere 2 MoE (Cohere 2026): parallel blocks, neighbours rotated where a window slides, experts beside shared ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size, head_dim
from ..nn import Decoder, Experts, GatedMLP, LayerNorm, ParallelBlock, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder_family, layer_windows
from .mixtures import mlp_kinds, per_expert


@dataclass(frozen=True, kw_only=True)
class Cohere2MoeConfig(LlamaFields):
    """The keys of a Cohere 2 MoE `config.json`.

    Without `layer_types`, the last of every `sliding_window_pattern` layers is global, and in the dense layers in front
    (`first_k_dense_replace`) the last of every `prefix_dense_sliding_window_pattern`. Norms are LayerNorm without bias, or
    RMSNorm where the file has `rms_norm_eps`.
    """

    model_type: ClassVar[str] = "cohere2_moe"
    head_dim: Size | None = 128
    max_position_embeddings: Size = 8192
    rms_norm_eps: float | None = None  # type: ignore[assignment]
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    logit_scale: float | int = 0.0625
    attention_bias: bool = False
    sliding_window: Size | None = 4096
    sliding_window_pattern: Size = 4
    prefix_dense_sliding_window_pattern: Size = 1
    layer_types: tuple[str, ...] | None = None
    mlp_layer_types: tuple[str, ...] | None = None
    first_k_dense_replace: int | None = None
    prefix_dense_intermediate_size: Size | None = None
    num_experts: Size = 8
    num_experts_per_tok: Size = 2
    num_shared_experts: int = 0
    shared_expert_combination_strategy: str = "average"
    expert_selection_fn: str = "softmax"
    norm_topk_prob: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "shared_expert_combination_strategy", "sum", "average")
        only(data, "expert_selection_fn", "softmax", "sigmoid")
        return data

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "rope_theta": data["rope_parameters"]["rope_theta"]}  # transformers' config says it twice


def cohere2_moe(c: Cohere2MoeConfig) -> Decoder:
    """The decoder: attention and experts of one normed input, added together."""
    first = c.first_k_dense_replace or 0
    patterns = [(i, c.prefix_dense_sliding_window_pattern) for i in range(first)]
    patterns += [(i, c.sliding_window_pattern) for i in range(c.num_hidden_layers - first)]
    derived = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i, pattern in patterns]
    windows = layer_windows(c, c.layer_types or derived, c.sliding_window)
    kinds = mlp_kinds(c, c.mlp_layer_types, first)

    def norm() -> RMSNorm | LayerNorm:
        if c.rms_norm_eps is not None:
            return RMSNorm(c.hidden_size, c.rms_norm_eps)
        return LayerNorm(c.hidden_size, c.layer_norm_eps, bias=False)

    def sparse() -> SparseMoE:
        normalize = c.norm_topk_prob or c.expert_selection_fn == "softmax"
        count, width, shared = c.num_experts, c.intermediate_size, c.num_shared_experts
        return SparseMoE(
            Router(c.hidden_size, count, c.num_experts_per_tok, normalize=normalize, score=c.expert_selection_fn),
            Experts(count, c.hidden_size, width, c.hidden_act),
            shared_experts=GatedMLP(c.hidden_size, width * shared, c.hidden_act) if shared else None,
            scale=0.5 if shared and c.shared_expert_combination_strategy == "average" else 1.0,
        )

    def block(i: int) -> ParallelBlock:
        rotates = windows[i] is not None or (kinds[i] == "dense" and c.prefix_dense_sliding_window_pattern == 1)
        bias, rope = c.attention_bias, "default" if rotates else None
        attn = attention(c, qkv_bias=bias, out_bias=bias, window=windows[i], rope=rope, interleaved=True)
        dense = c.prefix_dense_intermediate_size or c.intermediate_size
        mlp = GatedMLP(c.hidden_size, dense, c.hidden_act) if kinds[i] == "dense" else sparse()
        return ParallelBlock(attn, mlp, norm())

    layers = [block(i) for i in range(c.num_hidden_layers)]
    return Decoder(c, layers, norm(), head_dim=head_dim(c), rope={"default": c.rope_parameters})


decoder_family(
    "Cohere2Moe",
    Cohere2MoeConfig,
    cohere2_moe,
    classifies=False,
    head={"scale": lambda c: c.logit_scale},
    names=per_expert(),
)
