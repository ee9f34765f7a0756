"""OLMo 3 (OLMo Team 2025, arXiv 2512.13961): OLMo 2 with three sliding layers to a full one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import LlamaFields, Size, rope
from ..core.frozen import Frozen
from ..nn import Decoder, PostNormBlock
from .decoders import alternate, attention, decoder, decoder_family, layer_windows, mlp, norm, rope_by_kind, row_norms


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(LlamaFields):
    """The keys of an OLMo 3 `config.json`. `rope_parameters` has one entry per kind of layer.

    Without `layer_types`, every fourth layer sees everything.
    """

    model_type: ClassVar[str] = "olmo3"
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    sliding_window: Size | None = 4096
    layer_types: tuple[str, ...] | None = None
    rope_parameters: Frozen = Frozen(sliding_attention=rope(500000.0), full_attention=rope(500000.0))
    pad_token_id: int | None = 1

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        return rope_by_kind(data, sliding=500000.0, full=500000.0)


def olmo3(c: Olmo3Config) -> Decoder:
    """The decoder: what each part returns is normed; each kind of layer has its own rotary table."""
    kinds = c.layer_types or alternate(c.num_hidden_layers, 4)
    windows = layer_windows(c, kinds, c.sliding_window)

    def block(i: int) -> PostNormBlock:
        own = {"qk_norm": row_norms(c), "normed": "rows", "window": windows[i], "rope": kinds[i]}
        return PostNormBlock(attention(c, **own), mlp(c), norm(c), norm(c))

    return decoder(c, block, rope={kind: c.rope_parameters[kind] for kind in sorted(set(kinds))})


decoder_family("Olmo3", Olmo3Config, olmo3)
