"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with eight experts in the place of each MLP, two per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size, alias, rope
from ..core.frozen import Frozen
from ..names.rules import experts, rename
from ..nn import Block, Decoder, Experts, Router, SparseMoE
from .decoders import attention, decoder, decoder_family, norm


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


# In memory the experts are stacked, as in transformers' modules; in files each has its w1 (gate), w3 (up), w2 (down).
_FILE = "{rest}layers.{i}.block_sparse_moe."
NAMES = (
    experts(
        "{rest}layers.{i}.mlp.experts.gate_up_proj",
        _FILE + "experts.{e}.w1.weight",
        _FILE + "experts.{e}.w3.weight",
    ),
    experts("{rest}layers.{i}.mlp.experts.down_proj", _FILE + "experts.{e}.w2.weight"),
    rename("{rest}layers.{i}.mlp.gate.weight", _FILE + "gate.weight"),
)

decoder_family("Mixtral", MixtralConfig, mixtral, names=NAMES)
