"""RoBERTa-PreLayerNorm (Wettig et al. 2022, arXiv 2202.08005): RoBERTa with norms before the layers' parts, as in fairseq."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..nn import EncoderLayers, LayerNorm, TextEncoder
from .encoders import encoder_family, pre_norm_layer, pre_norm_names
from .roberta import RobertaConfig


@dataclass(frozen=True, kw_only=True)
class RobertaPreLayerNormConfig(RobertaConfig):
    """The keys of a RoBERTa-PreLayerNorm `config.json`."""

    model_type: ClassVar[str] = "roberta-prelayernorm"


def roberta_prelayernorm(c: Any, *, pooler: bool) -> TextEncoder:
    """The encoder: a norm of the embeddings, too, and one behind all layers."""
    layers = (pre_norm_layer(c, act=c.hidden_act) for _ in range(c.num_hidden_layers))
    norm = LayerNorm(c.hidden_size, c.layer_norm_eps)
    return TextEncoder(c, pooler=pooler, padding=c.pad_token_id, layers=EncoderLayers(tuple(layers)), norm=norm)


encoder_family(
    "RobertaPreLayerNorm",
    RobertaPreLayerNormConfig,
    roberta_prelayernorm,
    prefix="roberta_prelayernorm",
    layers=[
        *pre_norm_names("attention.LayerNorm", "intermediate.LayerNorm"),
        ("norm.{rest}", "LayerNorm.{rest}"),
    ],
)
