"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): local and global layers in turn, norms around each part, soft caps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import Gemma2Fields
from ..nn import Decoder, GatedMLP, RMSNorm, SandwichBlock
from .decoders import alternate, attention, decoder, decoder_family, layer_windows


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(Gemma2Fields):
    """The keys of a Gemma 2 `config.json`."""

    model_type: ClassVar[str] = "gemma2"

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "use_bidirectional_attention", False)
        return data


def gemma2(c: Gemma2Config) -> Decoder:
    """The decoder: scaled embeddings, and scores capped before the softmax."""
    windows = layer_windows(c, c.layer_types or alternate(c.num_hidden_layers, 2), c.sliding_window)
    scale, softcap = c.query_pre_attn_scalar**-0.5, c.attn_logit_softcapping
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
    return decoder(
        c,
        lambda i: SandwichBlock(
            attention(c, scale=scale, softcap=softcap, window=windows[i]),
            GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation),
            *(norm() for _ in range(4)),
        ),
        norm(),
        embed_scale=c.hidden_size**0.5,
    )


decoder_family(
    "Gemma2",
    Gemma2Config,
    gemma2,
    tags="score",
    head={"softcap": lambda c: c.final_logit_softcapping},
    ignore=("use_bidirectional_attention", "hidden_act"),  # files have both names; transformers reads hidden_activation
)
