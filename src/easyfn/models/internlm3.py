"""InternLM 3 (Shanghai AI Laboratory 2025): Llama, whose biases have older names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size, alias
from .decoders import decoder_classes, decoder_family
from .llama import LlamaConfig, llama


@dataclass(frozen=True, kw_only=True)
class InternLM3Config(LlamaConfig):
    """The keys of an InternLM 3 `config.json`. `qkv_bias` and `bias` are one: the biases of attention, and of the MLP."""

    model_type: ClassVar[str] = "internlm3"
    qkv_bias = alias("attention_bias")
    bias = alias("mlp_bias")
    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Size = 32768
    rms_norm_eps: float = 1e-5


decoder_family(
    None,
    InternLM3Config,
    llama,
    architectures={**decoder_classes("Llama"), **decoder_classes("InternLM3")},  # transformers has Llama's for it
)
