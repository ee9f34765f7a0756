"""VaultGemma (Google 2025, arXiv 2510.15001): Gemma 2 trained with differential privacy, pre-norm only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.fields import Gemma2Fields
from ..names.rules import rename
from ..nn import Block, Decoder, GatedMLP, RMSNorm
from .decoders import alternate, attention, decoder, decoder_family, layer_windows


@dataclass(frozen=True, kw_only=True)
class VaultGemmaConfig(Gemma2Fields):
    """The keys of a VaultGemma `config.json`."""

    model_type: ClassVar[str] = "vaultgemma"


def vaultgemma(c: VaultGemmaConfig) -> Decoder:
    """The decoder: scaled embeddings, and scores capped before the softmax."""
    windows = layer_windows(c, c.layer_types or alternate(c.num_hidden_layers, 2), c.sliding_window)
    scale, softcap = c.query_pre_attn_scalar**-0.5, c.attn_logit_softcapping
    norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
    gated = lambda: GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation)
    return decoder(
        c,
        lambda i: Block(attention(c, scale=scale, softcap=softcap, window=windows[i]), gated(), norm(), norm()),
        norm(),
        embed_scale=c.hidden_size**0.5,
    )


NAMES = (rename("{rest}.post_attention_layernorm.weight", "{rest}.pre_feedforward_layernorm.weight"),)


decoder_family(
    "VaultGemma",
    VaultGemmaConfig,
    vaultgemma,
    head={"softcap": lambda c: c.final_logit_softcapping},
    names=NAMES,
    classifies=False,
)
