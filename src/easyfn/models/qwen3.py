"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama with RMSNorm on the queries and keys of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels, rope_parameters
from ..core.frozen import Frozen
from ..nn import Attention, Block, Decoder, GatedMLP, RMSNorm
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks, qwen_windows


@dataclass(frozen=True)
class Qwen3Config:
    """The keys of a Qwen3 `config.json`. `layer_types`, or else `max_window_layers`, says which layers slide."""

    model_type: ClassVar[str] = "qwen3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0)
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(rope_parameters(data))


def qwen3(config: Qwen3Config) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention with normed queries and keys, gated MLP, all pre-norm."""
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
                qk_norm=RMSNorm(head_dim, c.rms_norm_eps),
                window=window,
                dropout=c.attention_dropout,
            ),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
        )
        for window in qwen_windows(c)
    ]
    return Decoder(
        c, layers, RMSNorm(c.hidden_size, c.rms_norm_eps), head_dim=head_dim, rope={"default": c.rope_parameters}
    )


family(
    "qwen3",
    config=Qwen3Config,
    tasks=decoder_tasks(qwen3),
    architectures=decoder_classes("Qwen3"),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)
