"""XGLM (Lin et al. 2021, arXiv 2112.10668): fairseq's pre-norm decoder with sinusoidal positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size, alias
from ..nn import Decoder, SinusoidalPositions
from .decoders import FAIRSEQ, decoder_family, decoder_names, fairseq_decoder


@dataclass(frozen=True, kw_only=True)
class XGLMConfig(CommonFields):
    """The keys of an XGLM `config.json`."""

    model_type: ClassVar[str] = "xglm"
    vocab_size: Size
    d_model: Size
    ffn_dim: Size
    num_layers: int
    attention_heads: Size
    activation_function: str = "gelu"
    max_position_embeddings: Size = 2048
    scale_embedding: bool = True
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    init_std: float = 0.02
    pad_token_id: int | None = 1
    tie_word_embeddings: bool = True
    hidden_size = alias("d_model")
    num_attention_heads = alias("attention_heads")
    num_hidden_layers = alias("num_layers")
    initializer_range = alias("init_std")

    @property
    def intermediate_size(self) -> int:
        return self.ffn_dim

    @property
    def hidden_act(self) -> str:
        return self.activation_function

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "add_cross_attention", False)
        only(data, "activation_dropout", 0.0)
        only(data, "layerdrop", 0.0)
        return data


def xglm(c: XGLMConfig) -> Decoder:
    """The decoder, with sinusoids from place 2."""
    positions = SinusoidalPositions(c.d_model, offset=2, zero=c.pad_token_id)
    return fairseq_decoder(c, positions, dropout=c.dropout, attention_dropout=c.attention_dropout)


decoder_family(
    None,
    XGLMConfig,
    xglm,
    architectures={"XGLMForCausalLM": "causal-lm", "XGLMModel": "base"},
    names=decoder_names("model", {**FAIRSEQ, "norm": "layer_norm"}),
    ignore=("add_cross_attention", "activation_dropout", "layerdrop"),
    ignore_tensors=(r"embed_positions\.weights$",),
)
