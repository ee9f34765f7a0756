"""Code World Model (Meta FAIR 2025, arXiv 2510.02387): Llama with a window in three of four layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import LlamaFields, Size
from ..core.frozen import Frozen
from ..nn import Block, Decoder
from .decoders import attention, decoder, decoder_family, layer_windows, mlp, norm


@dataclass(frozen=True, kw_only=True)
class CwmConfig(LlamaFields):
    """The keys of a CWM `config.json`. Without `layer_types` every fourth layer sees all, from the first on."""

    model_type: ClassVar[str] = "cwm"
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Size = 131072
    rms_norm_eps: float = 1e-5
    mlp_bias: bool = False
    sliding_window: Size | None = 8192
    layer_types: tuple[str, ...] | None = None
    rope_parameters: Frozen = Frozen(
        rope_type="llama3",
        rope_theta=1000000.0,
        factor=16.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def cwm(c: CwmConfig) -> Decoder:
    """The decoder: pre-norm layers."""
    kinds = c.layer_types or tuple(
        "sliding_attention" if i % 4 else "full_attention" for i in range(c.num_hidden_layers)
    )
    windows = layer_windows(c, kinds, c.sliding_window)
    return decoder(c, lambda i: Block(attention(c, window=windows[i]), mlp(c), norm(c), norm(c)))


decoder_family("Cwm", CwmConfig, cwm, classifies=False)
