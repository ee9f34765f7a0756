"""Qwen2-MoE (Qwen Team 2024, arXiv 2407.10671): experts beside a shared one behind a gate of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..nn import Block, Decoder, Experts, GatedMLP, Linear, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, layer_windows, norm
from .mixtures import dense, is_sparse, module, per_expert


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(LlamaFields):
    """The keys of a Qwen2-MoE `config.json`.

    With `use_sliding_window` and without `layer_types`, every other layer before `max_window_layers` slides.
    """

    model_type: ClassVar[str] = "qwen2_moe"
    num_key_value_heads: Size | None = 16
    max_position_embeddings: Size = 32768
    qkv_bias: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None
    moe_intermediate_size: Size = 1408
    shared_expert_intermediate_size: Size = 5632
    num_experts: int = 60
    num_experts_per_tok: Size = 4
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = None
    router_aux_loss_coef: float = 0.001


def qwen2_moe(c: Qwen2MoeConfig) -> Decoder:
    """The decoder: Qwen2's attention and, in every sparse layer, experts beside a gated one that all tokens go to."""
    slides = [c.use_sliding_window and i < c.max_window_layers and i % 2 == 0 for i in range(c.num_hidden_layers)]
    kinds = c.layer_types or ["sliding_attention" if s else "full_attention" for s in slides]
    windows = layer_windows(c, kinds, c.sliding_window)

    def sparse() -> SparseMoE:
        return SparseMoE(
            Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=c.norm_topk_prob),
            Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act),
            shared_experts=GatedMLP(c.hidden_size, c.shared_expert_intermediate_size, c.hidden_act),
            shared_expert_gate=Linear(c.hidden_size, 1, axes=(None, "embed")),
        )

    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=c.qkv_bias, window=windows[i]),
            sparse() if is_sparse(c, i) else dense(c),
            norm(c),
            norm(c),
        ),
    )


decoder_family(
    "Qwen2Moe",
    Qwen2MoeConfig,
    qwen2_moe,
    tags="score",
    answers="model",
    names=(*per_expert(), *module("mlp.shared_experts", "mlp.shared_expert")),
)
