"""OPT (Zhang et al. 2022, arXiv 2205.01068): GPT-3's layers, positions from row 2, and projections around the 350m model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size
from ..nn import MLP, AddNormBlock, Block, Decoder, LayerNorm, LearnedPositions
from .decoders import FAIRSEQ, decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class OPTConfig(CommonFields):
    """The keys of an OPT `config.json`. `word_embed_proj_dim` is the width of embeddings and head, if not `hidden_size`."""

    model_type: ClassVar[str] = "opt"
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: int
    num_attention_heads: Size
    ffn_dim: Size
    max_position_embeddings: Size = 2048
    do_layer_norm_before: bool = True
    word_embed_proj_dim: Size | None = None
    activation_function: str = "relu"
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    init_std: float = 0.02
    pad_token_id: int | None = 1
    tie_word_embeddings: bool = True

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "layerdrop", 0.0)
        only(data, "_remove_final_layer_norm", False)
        return data

    @property
    def initializer_range(self) -> float:
        return self.init_std


def opt(c: OPTConfig) -> Decoder:
    """The decoder: learned positions, attention and MLP with norms before them (after the sums in the 350m model)."""
    kind = Block if c.do_layer_norm_before else AddNormBlock

    def norm() -> LayerNorm:
        return LayerNorm(c.hidden_size, affine=c.layer_norm_elementwise_affine)

    layers = [
        kind(
            full_attention(c, qkv_bias=c.enable_bias, out_bias=c.enable_bias, dropout=c.attention_dropout),
            MLP(c.hidden_size, c.ffn_dim, c.activation_function, bias=c.enable_bias),
            norm(),
            norm(),
            dropout=c.dropout,
        )
        for _ in range(c.num_hidden_layers)
    ]
    return Decoder(
        c,
        layers,
        norm() if c.do_layer_norm_before else None,
        positions=LearnedPositions(c.max_position_embeddings, c.hidden_size, offset=2),
        width=c.word_embed_proj_dim,
    )


decoder_family(
    "OPT",
    OPTConfig,
    opt,
    answers="model",
    names=decoder_names("model", {**FAIRSEQ, "norm": "final_layer_norm"}, inner="decoder."),
    ignore=("layerdrop", "activation_dropout"),  # noise that no released model was trained with
)
