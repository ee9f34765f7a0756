"""Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288; Dubey et al. 2024, arXiv 2407.21783)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels, rope_parameters
from ..core.frozen import Frozen
from ..nn import Attention, Block, Decoder, GatedMLP, RMSNorm
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks


@dataclass(frozen=True)
class LlamaConfig:
    """The keys of a Llama `config.json`."""

    model_type: ClassVar[str] = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0)
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(rope_parameters(data))


def llama(config: LlamaConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention, gated MLP, all pre-norm."""
    c = config
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    layers = [
        Block(
            Attention(
                c.hidden_size,
                c.num_attention_heads,
                c.num_key_value_heads or c.num_attention_heads,
                head_dim,
                qkv_bias=c.attention_bias,
                out_bias=c.attention_bias,
                dropout=c.attention_dropout,
            ),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=c.mlp_bias),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
        )
        for _ in range(c.num_hidden_layers)
    ]
    return Decoder(
        c, layers, RMSNorm(c.hidden_size, c.rms_norm_eps), head_dim=head_dim, rope={"default": c.rope_parameters}
    )


family(
    "llama",
    config=LlamaConfig,
    tasks=decoder_tasks(llama),
    architectures={**decoder_classes("Llama"), "LLaMAForCausalLM": "causal-lm"},  # its name in the first checkpoints
    ignore=("is_llama_config",),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)
