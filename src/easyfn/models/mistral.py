"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import labels, rope_parameters
from ..core.frozen import Frozen
from ..nn import Attention, Block, Decoder, GatedMLP, RMSNorm
from ..registry.family import family
from .decoders import decoder_classes, decoder_tasks


@dataclass(frozen=True)
class MistralConfig:
    """The keys of a Mistral `config.json`. `sliding_window=None`: full attention, as from version 0.2 on."""

    model_type: ClassVar[str] = "mistral"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    rope_parameters: Frozen = Frozen(rope_type="default", rope_theta=10000.0)
    sliding_window: int | None = 4096
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = False
    num_labels: int = 2
    extra: Frozen = Frozen()
    generation: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return labels(rope_parameters(data))


def mistral(config: MistralConfig) -> Decoder:
    """The decoder: RMSNorm, rotary grouped-query attention within a window, gated MLP, all pre-norm."""
    c = config
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    layers = [
        Block(
            Attention(
                c.hidden_size,
                c.num_attention_heads,
                c.num_key_value_heads or c.num_attention_heads,
                head_dim,
                window=c.sliding_window,
                dropout=c.attention_dropout,
            ),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
            RMSNorm(c.hidden_size, c.rms_norm_eps),
        )
        for _ in range(c.num_hidden_layers)
    ]
    return Decoder(
        c, layers, RMSNorm(c.hidden_size, c.rms_norm_eps), head_dim=head_dim, rope={"default": c.rope_parameters}
    )


family(
    "mistral",
    config=MistralConfig,
    tasks=decoder_tasks(mistral),
    architectures=decoder_classes("Mistral"),
    ignore_tensors=(r"rotary_emb\.inv_freq$",),
)
