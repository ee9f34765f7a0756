"""AFMoE (Arcee 2025): Trinity's gated attention between two norms, rotated where it slides, and DeepSeek-V3's experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, head_dim
from ..names.rules import rename
from ..nn import Decoder, Experts, GatedMLP, RMSNorm, Router, SandwichBlock, SparseMoE
from .decoders import alternate, attention, decoder, decoder_family, layer_windows
from .mixtures import dense, mlp_kinds, per_expert


@dataclass(frozen=True, kw_only=True)
class AfmoeConfig(LlamaFields):
    """The keys of an AFMoE `config.json`. Without `layer_types` the last of every `global_attn_every_n_layers` sees all."""

    model_type: ClassVar[str] = "afmoe"
    vocab_size: Size = 200192
    hidden_size: Size = 2048
    intermediate_size: Size = 6144
    num_hidden_layers: int = 32
    num_attention_heads: Size = 16
    head_dim: Size | None = 128
    max_position_embeddings: Size = 16384
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    sliding_window: Size | None = 1024
    layer_types: tuple[str, ...] | None = None
    global_attn_every_n_layers: Size | None = 4
    num_dense_layers: int | None = 1
    moe_intermediate_size: Size = 1408
    num_experts: Size | None = 64
    num_experts_per_tok: Size | None = 6
    num_shared_experts: int | None = 2
    route_scale: float | int | None = 1.0
    mup_enabled: bool | None = False


def afmoe(c: AfmoeConfig) -> Decoder:
    """The decoder: norms around gated attention and around the MLP or the experts; global layers have no positions."""
    kinds = c.layer_types or alternate(c.num_hidden_layers, c.global_attn_every_n_layers or 4)
    windows = layer_windows(c, kinds, c.sliding_window)
    feeds = mlp_kinds(c, None, c.num_dense_layers or 0)
    wide: dict[str, Any] = {"float32": ("float16",)}  # as transformers keeps these norms
    norm = lambda dim=c.hidden_size: RMSNorm(dim, c.rms_norm_eps, **wide)

    def sparse() -> SparseMoE:
        router = Router(
            c.hidden_size,
            c.num_experts or 0,
            c.num_experts_per_tok,
            correction=True,
            score="sigmoid",
            scale=float(c.route_scale or 1.0),
            wide=("e_score_correction_bias",),
        )
        width, shared = c.moe_intermediate_size, c.num_shared_experts or 0
        return SparseMoE(
            router,
            Experts(c.num_experts or 0, c.hidden_size, width, c.hidden_act),
            shared_experts=GatedMLP(c.hidden_size, width * shared, c.hidden_act) if shared else None,
        )

    def block(i: int) -> SandwichBlock:
        rope = "default" if kinds[i] == "sliding_attention" else None
        attend = attention(c, qk_norm=norm(head_dim(c)), gate="sigmoid", window=windows[i], rope=rope)
        return SandwichBlock(attend, dense(c) if feeds[i] == "dense" else sparse(), norm(), norm(), norm(), norm())

    scale = c.hidden_size**0.5 if c.mup_enabled else None
    return decoder(c, block, norm(), embed_scale=scale, scale_inputs=True)


_MODULES = (
    rename("{rest}.pre_feedforward_layernorm.{tail}", "{rest}.pre_mlp_layernorm.{tail}"),
    rename("{rest}.post_feedforward_layernorm.{tail}", "{rest}.post_mlp_layernorm.{tail}"),
    rename("{rest}.mlp.gate.e_score_correction_bias", "{rest}.mlp.expert_bias"),
    rename("{rest}.mlp.gate.{tail}", "{rest}.mlp.router.gate.{tail}"),
)
decoder_family("Afmoe", AfmoeConfig, afmoe, names=(*per_expert(), *_MODULES), modules=_MODULES, classifies=False)
