"""Mellum 2 (JetBrains 2026): Qwen3's experts, with windows and rotary tables by kind of layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, alias, head_dim, rope
from ..core.frozen import Frozen
from ..nn import Block, Decoder, Experts, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, layer_windows, norm, rope_by_kind
from .mixtures import dense, mlp_kinds, per_expert


@dataclass(frozen=True, kw_only=True)
class MellumConfig(LlamaFields):
    """The keys of a Mellum 2 `config.json`. Without `layer_types` every layer sees all, without `mlp_layer_types` every
    layer has experts."""

    model_type: ClassVar[str] = "mellum"
    num_experts = alias("num_local_experts")
    ignored: ClassVar[tuple[str, ...]] = (
        *("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types"),
    )
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    attention_bias: bool = False
    sliding_window: Size | None = 1024
    moe_intermediate_size: Size = 896
    num_local_experts: Size = 64
    num_experts_per_tok: Size = 8
    norm_topk_prob: bool = True
    layer_types: tuple[str, ...] | None = None
    mlp_layer_types: tuple[str, ...] | None = None
    router_aux_loss_coef: float = 0.001
    rope_parameters: Frozen = Frozen(sliding_attention=rope(10000.0), full_attention=rope(500000.0))

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return rope_by_kind(data, sliding=10000.0, full=500000.0)


def mellum(c: MellumConfig) -> Decoder:
    """The decoder: pre-norm blocks of attention with normed heads and of softmax over all experts."""
    kinds = c.layer_types or ("full_attention",) * c.num_hidden_layers
    windows = layer_windows(c, kinds, c.sliding_window)
    feeds = mlp_kinds(c, c.mlp_layer_types, 0)

    def sparse() -> SparseMoE:
        router = Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=c.norm_topk_prob)
        return SparseMoE(router, Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act))

    def block(i: int) -> Block:
        own = {"qk_norm": RMSNorm(head_dim(c), c.rms_norm_eps), "window": windows[i], "rope": kinds[i]}
        return Block(attention(c, **own), dense(c) if feeds[i] == "dense" else sparse(), norm(c), norm(c))

    return decoder(c, block, rope={kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}, partial=True)


decoder_family(
    "Mellum",
    MellumConfig,
    mellum,
    names=per_expert(),
    classifies=False,
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\."),
)
