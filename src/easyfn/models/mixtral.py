"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with eight experts in the place of each MLP, two per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Block, Decoder, Experts, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm
from .mixtures import per_expert


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(LlamaFields):
    """The keys of a Mixtral `config.json`. `router_aux_loss_coef` weighs the load balancing loss in training."""

    model_type: ClassVar[str] = "mixtral"
    num_experts = alias("num_local_experts")
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(1000000.0)
    sliding_window: Size | None = None
    num_local_experts: Size = 8
    num_experts_per_tok: Size = 2
    router_aux_loss_coef: float = 0.001
    router_jitter_noise: float = 0.0


def mixtral(c: MixtralConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention, a mixture of gated MLPs, all pre-norm."""
    return decoder(
        c,
        lambda _: Block(
            attention(c, window=c.sliding_window),
            SparseMoE(
                Router(c.hidden_size, c.num_local_experts, c.num_experts_per_tok),
                Experts(c.num_local_experts, c.hidden_size, c.intermediate_size, c.hidden_act),
                jitter=c.router_jitter_noise,
            ),
            norm(c),
            norm(c),
        ),
    )


_ROUTER = "{rest}layers.{i}.%s.gate.weight"

decoder_family(
    "Mixtral",
    MixtralConfig,
    mixtral,
    tags="score",
    answers="model",
    names=(
        *per_expert("w1", "w3", "w2", theirs="block_sparse_moe"),
        rename(_ROUTER % "mlp", _ROUTER % "block_sparse_moe"),
    ),
)
