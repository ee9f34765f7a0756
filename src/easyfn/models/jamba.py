"""Jamba (AI21 2024, arXiv 2403.19887): Mamba with a layer of attention in eight, experts in every second MLP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Decoder, Experts, GatedMLP, MambaMixer, RMSNorm, Router, SparseMoE
from ..registry.family import family
from .decoders import attention, decoder_tasks
from .hybrids import hybrid_decoder, mixer_is
from .mixtures import per_expert


@dataclass(frozen=True)
class JambaConfig:
    """The keys of a Jamba `config.json`. There are no rotary positions."""

    model_type: ClassVar[str] = "jamba"
    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    hidden_act: str = "silu"
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    num_experts: int = 16
    num_experts_per_tok: int = 2
    router_aux_loss_coef: float = 0.001
    expert_layer_period: int = 2
    expert_layer_offset: int = 1
    attn_layer_period: int = 8
    attn_layer_offset: int = 4
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int | str = "auto"
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(data)


def jamba(config: JambaConfig) -> Decoder:
    """The decoder: Mamba or attention, then a gated MLP or experts, all pre-norm."""
    c = config
    norm = lambda size=c.hidden_size: RMSNorm(size, c.rms_norm_eps)
    rank = math.ceil(c.hidden_size / 16) if c.mamba_dt_rank == "auto" else int(c.mamba_dt_rank)

    def mlp(i: int) -> Any:
        if i % c.expert_layer_period != c.expert_layer_offset or c.num_experts <= 1:
            return GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act)
        router = Router(c.hidden_size, c.num_experts, c.num_experts_per_tok, normalize=False)
        return SparseMoE(router, Experts(c.num_experts, c.hidden_size, c.intermediate_size, c.hidden_act))

    attends = lambda i: i % c.attn_layer_period == c.attn_layer_offset
    kinds = ["full_attention" if attends(i) else "linear_attention" for i in range(c.num_hidden_layers)]
    mamba = lambda: MambaMixer(
        c.hidden_size,
        inner=c.mamba_expand * c.hidden_size,
        state=c.mamba_d_state,
        rank=rank,
        kernel=c.mamba_d_conv,
        bias=c.mamba_proj_bias,
        conv_bias=c.mamba_conv_bias,
        act=c.hidden_act,
        norms=(norm(rank), norm(c.mamba_d_state), norm(c.mamba_d_state)),
    )
    mixers = {"full_attention": lambda: attention(c, rope=None), "linear_attention": mamba}
    return hybrid_decoder(c, kinds, mixers, mlp, norm, head_dim=c.hidden_size // c.num_attention_heads, rope={})


family(
    "jamba",
    config=JambaConfig,
    tasks=decoder_tasks(jamba),
    architectures={
        "JambaForCausalLM": "causal-lm",
        "JambaModel": "base",
        "JambaForSequenceClassification": "sequence-classification",
    },
    names=(
        *per_expert(theirs="feed_forward"),
        mixer_is("mamba"),
        rename("{tail}.mlp.gate.{rest}", "{tail}.feed_forward.router.{rest}"),
        rename("{tail}.mlp.{rest}", "{tail}.feed_forward.{rest}"),
        rename("{rest}.post_attention_layernorm.{tail}", "{rest}.pre_ff_layernorm.{tail}"),
        rename("model.norm.{tail}", "model.final_layernorm.{tail}"),
        rename("norm.{tail}", "final_layernorm.{tail}"),
    ),
    ignore=("num_logits_to_keep", "use_mamba_kernels", "use_mambapy", "use_associative_scan", "sliding_window"),
)
