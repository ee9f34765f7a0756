"""dots.llm1 (rednote 2025, arXiv 2506.05767): Qwen3's attention with DeepSeek-V3's experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Size, head_dim
from ..nn import Block, Decoder, RMSNorm
from .decoders import attention, decoder, decoder_family, layer_windows, norm
from .mixtures import GroupedFields, grouped, per_expert


@dataclass(frozen=True, kw_only=True)
class Dots1Config(GroupedFields):
    """The keys of a dots.llm1 `config.json`. `layer_types`, or else `max_window_layers`, says which layers slide."""

    model_type: ClassVar[str] = "dots1"
    num_key_value_heads: Size | None = 32
    moe_intermediate_size: Size = 1408
    n_shared_experts: int | None = None
    num_experts_per_tok: Size
    norm_topk_prob: bool | None = False
    sliding_window: Size | None = 4096
    max_window_layers: int | None = 62
    layer_types: tuple[str, ...] | None = None


def dots1(c: Dots1Config) -> Decoder:
    """The decoder: pre-norm blocks of attention with normed queries and keys and, after the first layers, of experts."""
    first = c.num_hidden_layers if c.sliding_window is None else c.max_window_layers or 0
    kinds = ["full_attention" if i < first else "sliding_attention" for i in range(c.num_hidden_layers)]
    windows, bias = layer_windows(c, c.layer_types or kinds, c.sliding_window), c.attention_bias
    return decoder(
        c,
        lambda i: Block(
            attention(c, qkv_bias=bias, out_bias=bias, qk_norm=RMSNorm(head_dim(c), c.rms_norm_eps), window=windows[i]),
            grouped(c, i),
            norm(c),
            norm(c),
        ),
    )


decoder_family("Dots1", Dots1Config, dots1, classifies=False, names=per_expert())
