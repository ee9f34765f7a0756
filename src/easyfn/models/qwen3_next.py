"""Qwen3-Next (Qwen team 2025): three gated delta nets to one gated attention, and a mixture of experts with a shared one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels, rope_parameters
from ..core.frozen import Frozen
from ..nn import Decoder, GatedMLP
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks
from .hybrids import EXPERT_NAMES, mixer_is, qwen_hybrid, shared_expert_moe


@dataclass(frozen=True)
class Qwen3NextConfig:
    """The keys of a Qwen3-Next `config.json`. `layer_types`, or else `full_attention_interval`, says which layers attend."""

    model_type: ClassVar[str] = "qwen3_next"
    unsaid: ClassVar[tuple[str, ...]] = ("full_attention_interval",)
    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.25)
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    full_attention_interval: int = 4
    layer_types: tuple[str, ...] | None = None
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] | None = None
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    num_experts: int = 512
    num_experts_per_tok: int = 10
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.001
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(rope_parameters({"partial_rotary_factor": 0.25, **data}))


def qwen3_next(config: Qwen3NextConfig) -> Decoder:
    """The decoder: gated delta nets and gated attention, a mixture of experts in every `decoder_sparse_step`-th layer."""
    c = config

    def mlp(i: int) -> Any:
        sparse = i not in (c.mlp_only_layers or ()) and c.num_experts and (i + 1) % c.decoder_sparse_step == 0
        return shared_expert_moe(c) if sparse else GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)

    return qwen_hybrid(c, mlp, projections="two")


family(
    "qwen3_next",
    config=Qwen3NextConfig,
    tasks=decoder_tasks(qwen3_next),
    architectures=decoder_classes("Qwen3Next"),
    names=(mixer_is("linear_attn"), *EXPERT_NAMES),
    ignore_tensors=(r"rotary_emb\.inv_freq$", r"^mtp\."),
)
