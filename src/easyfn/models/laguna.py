"""Laguna (Poolside 2026): Mellum's windows, a gate on what each head answers, DeepSeek-V3's router, heads by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Block, Decoder, Experts, GatedMLP, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, layer_windows, norm, rope_by_kind
from .mixtures import dense, mlp_kinds, per_expert


@dataclass(frozen=True, kw_only=True)
class LagunaConfig(LlamaFields):
    """The keys of a Laguna `config.json`. Without `layer_types` every layer sees all, without `mlp_layer_types` all but the
    first have experts. `gating`: one gate per head (`true`, `"per-head"`), or one for each number (all else)."""

    model_type: ClassVar[str] = "laguna"
    ignored: ClassVar[tuple[str, ...]] = ("moe_apply_router_weight_on_input",)
    vocab_size: Size = 100352
    hidden_size: Size = 2048
    intermediate_size: Size = 8192
    num_hidden_layers: int = 40
    num_attention_heads: Size = 48
    num_key_value_heads: Size = 8
    head_dim: Size = 128
    num_attention_heads_per_layer: tuple[int, ...] | None = None
    max_position_embeddings: Size = 131072
    attention_bias: bool = False
    gating: bool | str = True
    sliding_window: Size = 512
    layer_types: tuple[str, ...] | None = None
    mlp_layer_types: tuple[str, ...] | None = None
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    num_experts: Size = 256
    num_experts_per_tok: Size = 8
    moe_routed_scaling_factor: float | int = 1.0
    moe_router_logit_softcapping: float | int = 0.0
    router_aux_loss_coef: float = 0.001
    rope_parameters: Frozen = Frozen(
        full_attention=rope(500000.0, partial_rotary_factor=0.5),
        sliding_attention=rope(10000.0, partial_rotary_factor=1.0),
    )

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "moe_apply_router_weight_on_input", False)
        return rope_by_kind(data, sliding=10000.0, full=500000.0) if data.get("rope_parameters") else data


def laguna(c: LagunaConfig) -> Decoder:
    """The decoder: pre-norm blocks of gated attention with normed heads, and of experts beside a shared one."""
    kinds = c.layer_types or ("full_attention",) * c.num_hidden_layers
    windows, feeds = layer_windows(c, kinds, c.sliding_window), mlp_kinds(c, c.mlp_layer_types)
    heads = c.num_attention_heads_per_layer or (c.num_attention_heads,) * c.num_hidden_layers
    gate = {"gate": "softplus", "head_gates": c.gating is True or c.gating == "per-head"}

    def sparse() -> SparseMoE:
        router = Router(
            c.hidden_size,
            c.num_experts,
            c.num_experts_per_tok,
            correction=True,
            score="sigmoid",
            scale=c.moe_routed_scaling_factor,
            softcap=c.moe_router_logit_softcapping or None,
        )
        shared = GatedMLP(c.hidden_size, c.shared_expert_intermediate_size, c.hidden_act)
        experts = Experts(c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act)
        return SparseMoE(router, experts, shared_experts=shared)

    def block(i: int) -> Block:
        own = {"qk_norm": RMSNorm(c.head_dim, c.rms_norm_eps), "window": windows[i], "rope": kinds[i], **gate}
        attend = attention(replace(c, num_attention_heads=heads[i]), **own)
        return Block(attend, dense(c) if feeds[i] == "dense" else sparse(), norm(c), norm(c))

    return decoder(c, block, rope={kind: c.rope_parameters[kind] for kind in sorted(set(kinds))}, partial=True)


_GATE = rename("{rest}self_attn.gate_proj.{tail}", "{rest}self_attn.g_proj.{tail}")
_FILES = (
    rename("{rest}mlp.gate.e_score_correction_bias", "{rest}mlp.experts.e_score_correction_bias"),
    rename("{rest}mlp.shared_experts.{tail}", "{rest}mlp.shared_expert.{tail}"),
)
decoder_family(
    "Laguna", LagunaConfig, laguna, names=(*per_expert(), _GATE, *_FILES), modules=(_GATE,), classifies=False
)
