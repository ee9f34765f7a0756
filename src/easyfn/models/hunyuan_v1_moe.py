"""Hunyuan MoE (Tencent 2025): queries and keys normed after they are rotated, experts beside a shared MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, alias, head_dim
from ..nn import Block, Decoder, Experts, RMSNorm, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import dense, module, per_expert


@dataclass(frozen=True, kw_only=True)
class HunYuanMoEV1Config(LlamaFields):
    """The keys of a Hunyuan MoE `config.json`. `moe_topk` is one number, or one for each layer."""

    model_type: ClassVar[str] = "hunyuan_v1_moe"
    num_experts_per_tok = alias("moe_topk")
    num_local_experts = alias("num_experts")
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    num_experts: Size = 1
    moe_topk: int | tuple[int, ...] = 1
    ignored: ClassVar[tuple[str, ...]] = ("eod_token_id",)


def hunyuan_v1_moe(c: HunYuanMoEV1Config) -> Decoder:
    """The decoder: pre-norm blocks of attention and of experts, softmax over all of them first."""
    bias = c.attention_bias

    def sparse(i: int) -> SparseMoE:
        k = c.moe_topk if isinstance(c.moe_topk, int) else c.moe_topk[i]
        return SparseMoE(
            Router(c.hidden_size, c.num_experts, k, float32=True),
            Experts(c.num_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
            shared_experts=dense(c),
        )

    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, qk_norm=RMSNorm(head_dim(c), c.rms_norm_eps), normed="rotated"),
            sparse(i),
            norm(c),
            norm(c),
        ),
    )


decoder_family(
    "HunYuanMoEV1",
    HunYuanMoEV1Config,
    hunyuan_v1_moe,
    names=(
        *per_expert(),
        *module("mlp.gate", "mlp.gate.wg"),
        *module("mlp.shared_experts", "mlp.shared_mlp"),
        *module("self_attn.q_norm", "self_attn.query_layernorm"),
        *module("self_attn.k_norm", "self_attn.key_layernorm"),
    ),
)
