"""Qwen3-Next (Qwen team 2025): three gated delta nets to one gated attention, and a mixture of experts with a shared one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import Decoder, GatedMLP
from .decoders import decoder_family
from .hybrids import EXPERT_NAMES, SharedExpertFields, mixer_is, qwen_hybrid, shared_expert_moe


@dataclass(frozen=True, kw_only=True)
class Qwen3NextConfig(SharedExpertFields):
    """The keys of a Qwen3-Next `config.json`. `layer_types`, or else `full_attention_interval`, says which layers attend."""

    model_type: ClassVar[str] = "qwen3_next"
    vocab_size: Size = 151936
    intermediate_size: Size = 5632
    num_hidden_layers: int = 48
    decoder_sparse_step: Size = 1
    mlp_only_layers: tuple[int, ...] | None = None
    num_experts: int = 512
    num_experts_per_tok: Size = 10
    norm_topk_prob: bool = True


def qwen3_next(config: Qwen3NextConfig) -> Decoder:
    """The decoder: gated delta nets and gated attention, a mixture of experts in every `decoder_sparse_step`-th layer."""
    c = config

    def mlp(i: int) -> Any:
        sparse = i not in (c.mlp_only_layers or ()) and c.num_experts and (i + 1) % c.decoder_sparse_step == 0
        return shared_expert_moe(c) if sparse else GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)

    return qwen_hybrid(c, mlp, projections="two")


decoder_family(
    "Qwen3Next",
    Qwen3NextConfig,
    qwen3_next,
    tags="score",
    answers="transformer",
    names=(mixer_is("linear_attn"), *EXPERT_NAMES),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\."),
)
