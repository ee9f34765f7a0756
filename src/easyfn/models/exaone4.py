"""EXAONE 4 (LG AI Research 2025, arXiv 2507.11407): norms after the parts; full layers without rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, head_dim
from ..nn import Decoder, PostNormBlock, RMSNorm
from .decoders import alternate, attention, decoder, decoder_family, layer_windows, mlp, norm


@dataclass(frozen=True, kw_only=True)
class Exaone4Config(LlamaFields):
    """The keys of an EXAONE 4 `config.json`. Without `sliding_window` every layer is full, and rotates."""

    model_type: ClassVar[str] = "exaone4"
    num_key_value_heads: Size = 32
    rms_norm_eps: float = 1e-5
    sliding_window: Size | None = 4096
    sliding_window_pattern: str | int | None = 4
    layer_types: tuple[str, ...] | None = None

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        if "sliding_window" in data and data["sliding_window"] is None:
            data = {**data, "sliding_window_pattern": 0}
        return data


def exaone4(c: Exaone4Config) -> Decoder:
    """The decoder: what each part returns is normed, and queries and keys by head."""
    every = c.sliding_window_pattern
    if isinstance(every, str):
        raise ValueError(f"exaone4: sliding_window_pattern={every!r}; give layer_types in its place")
    kinds = c.layer_types or (
        alternate(c.num_hidden_layers, every) if every else ("full_attention",) * c.num_hidden_layers
    )
    windows = layer_windows(c, kinds, c.sliding_window)

    def block(i: int) -> PostNormBlock:
        rope = "default" if c.sliding_window is None or windows[i] is not None else None
        own = {"qk_norm": RMSNorm(head_dim(c), c.rms_norm_eps), "window": windows[i], "rope": rope}
        return PostNormBlock(attention(c, **own), mlp(c), norm(c), norm(c))

    return decoder(c, block)


decoder_family("Exaone4", Exaone4Config, exaone4, tags="score", answers="transformer")
