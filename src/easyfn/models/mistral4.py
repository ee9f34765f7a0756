"""Mistral 4 (Mistral AI 2026): DeepSeek's latent attention with queries that grow, and softmax over experts in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..core.frozen import Frozen
from ..nn import Block, Decoder, Experts, GatedMLP, Router, SparseMoE
from .decoders import decoder, decoder_family, norm
from .ministral3 import temperature
from .mixtures import GroupedFields, LatentFields, dense, latent_attention

YARN = Frozen(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=128.0,
    original_max_position_embeddings=8192,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)


@dataclass(frozen=True, kw_only=True)
class Mistral4Config(LatentFields, GroupedFields):
    """The keys of a Mistral 4 `config.json`. Heads are rotated in their `qk_rope_head_dim` entries, whatever the rotary
    settings say of the rotated part."""

    model_type: ClassVar[str] = "mistral4"
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Size = 1048576
    rope_parameters: Frozen = YARN
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = 128
    num_experts_per_tok: Size = 4
    n_shared_experts: Size = 1
    kv_lora_rank: Size = 256
    q_lora_rank: Size | None = 1024
    qk_nope_head_dim: Size = 64
    rope_interleave: bool | None = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        data = dict(data)
        if data.get("rope_parameters") is None and data.get("rope_scaling") is None:
            data["rope_parameters"] = dict(YARN)
        for key in ("rope_parameters", "rope_scaling"):
            if data.get(key):  # a copy of the key outside
                data[key] = {k: v for k, v in data[key].items() if k != "max_position_embeddings"}
        return data

    @staticmethod
    def denormalize(data: dict[str, Any]) -> dict[str, Any]:
        copied = {"max_position_embeddings": data["max_position_embeddings"]}
        return {**data, "rope_parameters": {**data["rope_parameters"], **copied}}


def mistral4(c: Mistral4Config) -> Decoder:
    """The decoder: pre-norm blocks of latent attention and, after the first layers, of experts and a shared one."""
    rope = {k: v for k, v in c.rope_parameters.items() if k not in ("partial_rotary_factor", "llama_4_scaling_beta")}
    grows = temperature(c)
    count, width = c.n_routed_experts, c.moe_intermediate_size

    def sparse() -> SparseMoE:
        return SparseMoE(
            Router(
                c.hidden_size,
                count,
                c.num_experts_per_tok,
                normalize=bool(c.norm_topk_prob),
                groups=c.n_group,
                topk_groups=c.topk_group,
                scale=c.routed_scaling_factor,
            ),
            Experts(count, c.hidden_size, width, c.hidden_act),
            shared_experts=GatedMLP(c.hidden_size, width * c.n_shared_experts, c.hidden_act),
        )

    return decoder(
        c,
        lambda i: Block(
            latent_attention(c, interleaved=bool(c.rope_interleave), temperature=grows),
            dense(c) if i < (c.first_k_dense_replace or 0) else sparse(),
            norm(c),
            norm(c),
        ),
        head_dim=c.qk_rope_head_dim,
        rope={"default": rope},
    )


decoder_family("Mistral4", Mistral4Config, mistral4, tags="score")
