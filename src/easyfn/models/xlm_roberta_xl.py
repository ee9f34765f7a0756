"""XLM-RoBERTa-XL (Goyal et al. 2021, arXiv 2105.00572): a deep XLM-RoBERTa with its norms before the layers' parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.fields import Size
from ..nn import EncoderEmbeddings, EncoderLayers, LayerNorm, TextEncoder
from .encoders import EncoderFields, encoder_family, pre_norm_layer, pre_norm_names


@dataclass(frozen=True, kw_only=True)
class XLMRobertaXLConfig(EncoderFields):
    """The keys of an XLM-RoBERTa-XL `config.json`."""

    model_type: ClassVar[str] = "xlm-roberta-xl"
    vocab_size: Size = 250880
    hidden_size: Size = 2560
    num_hidden_layers: int = 36
    num_attention_heads: Size = 32
    intermediate_size: Size = 10240
    max_position_embeddings: Size = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1


def xlm_roberta_xl(c: Any, *, pooler: bool) -> TextEncoder:
    """The encoder: the first norm is that of the first layer, the last behind all; of the MLP nothing is dropped out."""
    layers = (pre_norm_layer(c, act=c.hidden_act, mlp_dropout=0.0) for _ in range(c.num_hidden_layers))
    return TextEncoder(
        c,
        pooler=pooler,
        embeddings=EncoderEmbeddings(c, padding=c.pad_token_id, norm=None),
        layers=EncoderLayers(tuple(layers)),
        norm=LayerNorm(c.hidden_size, c.layer_norm_eps),
    )


encoder_family(
    "XLMRobertaXL",
    XLMRobertaXLConfig,
    xlm_roberta_xl,
    prefix="roberta",
    layers=[
        *pre_norm_names("attention.self_attn_layer_norm", "LayerNorm"),
        ("norm.{rest}", "encoder.LayerNorm.{rest}"),
    ],
)
