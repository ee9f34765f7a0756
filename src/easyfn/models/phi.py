"""Phi-1, 1.5 and 2 (Li et al. 2023, arXiv 2309.05463): parallel blocks with LayerNorm, half of each head rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import RotaryFields, rope
from ..core.frozen import Frozen
from ..names.rules import rename
from ..nn import MLP, Decoder, LayerNorm, ParallelBlock
from .decoders import attention, decoder, decoder_family


@dataclass(frozen=True, kw_only=True)
class PhiConfig(RotaryFields):
    """The keys of a Phi `config.json`."""

    model_type: ClassVar[str] = "phi"
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    rope_parameters: Frozen = rope(10000.0, partial_rotary_factor=0.5)
    resid_pdrop: float | int = 0.0
    embd_pdrop: float | int = 0.0
    qk_layernorm: bool = False


def phi(c: PhiConfig) -> Decoder:
    """The decoder: attention and MLP read the same normed input; everything has a bias, the head too."""
    head_norm = LayerNorm(c.hidden_size // c.num_attention_heads, c.layer_norm_eps) if c.qk_layernorm else None
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps)
    return decoder(
        c,
        lambda _: ParallelBlock(
            attention(c, qkv_bias=True, out_bias=True, qk_norm=head_norm),
            MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True),
            norm(),
            dropout=float(c.resid_pdrop),
        ),
        norm(),
        partial=True,
        dropout=float(c.embd_pdrop),
    )


NAMES = (
    rename("{rest}.self_attn.o_proj.{tail}", "{rest}.self_attn.dense.{tail}"),
    rename("{rest}.self_attn.q_norm.{tail}", "{rest}.self_attn.q_layernorm.{tail}"),
    rename("{rest}.self_attn.k_norm.{tail}", "{rest}.self_attn.k_layernorm.{tail}"),
    rename("{rest}.mlp.up_proj.{tail}", "{rest}.mlp.fc1.{tail}"),
    rename("{rest}.mlp.down_proj.{tail}", "{rest}.mlp.fc2.{tail}"),
    rename("model.norm.{tail}", "model.final_layernorm.{tail}"),
    rename("norm.{tail}", "final_layernorm.{tail}"),
)


decoder_family("Phi", PhiConfig, phi, tags="score", head={"bias": lambda c: True}, names=NAMES)
