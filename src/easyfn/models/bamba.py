"""Bamba (IBM, Princeton, CMU, UIUC 2024): Mamba-2 layers, attention with partial rotation at a few, a gated MLP in each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import rope_parameters
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Attention, Block, Decoder, GatedMLP, GatedRMSNorm, RecurrentBlock, RMSNorm
from ..registry.family import family
from .decoders import decoder_tasks
from .hybrids import mamba2_mixer, mamba_width, mixer_is


@dataclass(frozen=True)
class BambaConfig:
    """The keys of a Bamba `config.json`. `attn_layer_indices` says which layers attend."""

    model_type: ClassVar[str] = "bamba"
    vocab_size: int = 128000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
    attn_layer_indices: tuple[int, ...] | None = None
    attention_bias: bool = False
    attention_dropout: float | int | None = 0.0
    mlp_bias: bool = False
    mamba_n_heads: int = 128
    mamba_d_head: str | int = "auto"
    mamba_n_groups: int = 1
    mamba_d_state: int = 256
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_chunk_size: int = 256
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    tie_word_embeddings: bool = False
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return rope_parameters({**data, "partial_rotary_factor": 0.5})


def bamba(config: BambaConfig) -> Decoder:
    """The decoder: a state space or attention, then a gated MLP, all pre-norm."""
    c = config
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps)
    layers: list[Any] = []
    for i in range(c.num_hidden_layers):
        mlp = GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias)
        if i not in (c.attn_layer_indices or ()):
            mixer = mamba2_mixer(c, GatedRMSNorm(mamba_width(c), c.mamba_n_groups, c.rms_norm_eps))
            layers.append(RecurrentBlock(mixer, mlp, norm(), norm()))
            continue
        attention = Attention(
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads or c.num_attention_heads,
            head_dim,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
            dropout=c.attention_dropout or 0.0,
        )
        layers.append(Block(attention, mlp, norm(), norm()))
    return Decoder(c, layers, norm(), head_dim=head_dim, rope={"default": c.rope_parameters}, partial=True)


tasks = decoder_tasks(bamba)
family(
    "bamba",
    config=BambaConfig,
    tasks={name: tasks[name] for name in ("causal-lm", "base")},
    architectures={"BambaForCausalLM": "causal-lm", "BambaModel": "base"},
    names=(
        mixer_is("mamba"),
        rename("{rest}.mlp.{tail}", "{rest}.feed_forward.{tail}"),
        rename("{rest}.post_attention_layernorm.{tail}", "{rest}.pre_ff_layernorm.{tail}"),
        rename("model.norm.{tail}", "model.final_layernorm.{tail}"),
        rename("norm.{tail}", "final_layernorm.{tail}"),
    ),
    ignore=("num_logits_to_keep", "z_loss_coefficient", "attn_rotary_emb"),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)
