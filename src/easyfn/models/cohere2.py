"""Command R7B and A (Cohere 2025, arXiv 2504.00698): sliding layers with rotary positions, full ones without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import RotaryFields, Size
from ..nn import Decoder, LayerNorm, ParallelBlock
from .decoders import alternate, attention, decoder, decoder_family, layer_windows, mlp


@dataclass(frozen=True, kw_only=True)
class Cohere2Config(RotaryFields):
    """The keys of a Cohere 2 `config.json`. Without `layer_types`, every fourth layer sees everything."""

    model_type: ClassVar[str] = "cohere2"
    hidden_act: str = "silu"
    max_position_embeddings: Size = 8192
    layer_norm_eps: float = 1e-5
    logit_scale: float | int = 0.0625
    attention_bias: bool = False
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        pattern = data.get("sliding_window_pattern")  # the first releases', for layer_types
        data = {k: v for k, v in data.items() if k != "sliding_window_pattern"}
        if pattern and data.get("layer_types") is None and "num_hidden_layers" in data:
            data["layer_types"] = alternate(data["num_hidden_layers"], pattern)
        return data


def cohere2(c: Cohere2Config) -> Decoder:
    """The decoder: parallel blocks; a layer has a place for what is near, or sees all without order."""
    windows = layer_windows(c, c.layer_types or alternate(c.num_hidden_layers, 4), c.sliding_window)
    norm = lambda: LayerNorm(c.hidden_size, c.layer_norm_eps, bias=False)

    def block(i: int) -> ParallelBlock:
        rope = None if windows[i] is None else "default"
        return ParallelBlock(attention(c, interleaved=True, window=windows[i], rope=rope), mlp(c), norm())

    return decoder(c, block, norm())


decoder_family("Cohere2", Cohere2Config, cohere2, head={"scale": lambda c: c.logit_scale}, classifies=False)
