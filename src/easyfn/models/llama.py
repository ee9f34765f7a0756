"""Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288; Dubey et al. 2024, arXiv 2407.21783)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields
from ..nn import Block, Decoder, GatedMLP
from .decoders import attention, decoder, decoder_classes, decoder_family, norm


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(LlamaFields):
    """The keys of a Llama `config.json`."""

    model_type: ClassVar[str] = "llama"
    attention_bias: bool = False
    mlp_bias: bool = False


def llama(c: LlamaConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention, gated MLP, all pre-norm."""
    return decoder(
        c,
        lambda _: Block(
            attention(c, qkv_bias=c.attention_bias, out_bias=c.attention_bias),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias),
            norm(c),
            norm(c),
        ),
    )


decoder_family(
    None,
    LlamaConfig,
    llama,
    tags="score",
    answers="transformer",
    architectures={**decoder_classes("Llama"), "LLaMAForCausalLM": "causal-lm"},  # as the first checkpoints have it
    ignore=("is_llama_config",),
)
