"""Bamba (IBM, Princeton, CMU, UIUC 2024): Mamba-2 layers, attention with partial rotation at a few, a gated MLP in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import rope_parameters
from ..config.fields import Size, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import Decoder, GatedRMSNorm
from .decoders import attention, decoder_family, mlp
from .hybrids import MambaFields, hybrid_decoder, mamba2_mixer, mamba_width, mixer_is


@dataclass(frozen=True, kw_only=True)
class BambaConfig(MambaFields):
    """The keys of a Bamba `config.json`. `attn_layer_indices` says which layers attend."""

    model_type: ClassVar[str] = "bamba"
    vocab_size: Size = 128000
    hidden_size: Size = 4096
    intermediate_size: Size = 14336
    num_hidden_layers: int = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 262144
    rms_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(partial_rotary_factor=0.5)
    attn_layer_indices: tuple[int, ...] | None = None
    mlp_bias: bool = False

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return rope_parameters({**data, "partial_rotary_factor": 0.5})


def bamba(c: BambaConfig) -> Decoder:
    """The decoder: a state space or attention, then a gated MLP, all pre-norm."""
    attends = c.attn_layer_indices or ()
    kinds = ["full_attention" if i in attends else "linear_attention" for i in range(c.num_hidden_layers)]
    mixers = {
        "full_attention": lambda: attention(c),
        "linear_attention": lambda: mamba2_mixer(c, GatedRMSNorm(mamba_width(c), c.mamba_n_groups, c.rms_norm_eps)),
    }
    return hybrid_decoder(c, kinds, mixers, lambda i: mlp(c), partial=True)


decoder_family(
    "Bamba",
    BambaConfig,
    bamba,
    classifies=False,
    names=(
        mixer_is("mamba"),
        rename("{rest}.mlp.{tail}", "{rest}.feed_forward.{tail}"),
        rename("{rest}.post_attention_layernorm.{tail}", "{rest}.pre_ff_layernorm.{tail}"),
        rename("model.norm.{tail}", "model.final_layernorm.{tail}"),
        rename("norm.{tail}", "final_layernorm.{tail}"),
    ),
    ignore=("num_logits_to_keep", "z_loss_coefficient", "attn_rotary_emb"),
)
