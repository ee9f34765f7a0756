"""BLOOM (BigScience 2022, arXiv 2211.05100): ALiBi instead of positions, and a norm of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size, alias
from ..nn import MLP, Alibi, Block, Decoder, LayerNorm
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class BloomConfig(CommonFields):
    """The keys of a BLOOM `config.json`."""

    model_type: ClassVar[str] = "bloom"
    vocab_size: Size
    hidden_size: Size
    n_layer: int
    n_head: Size
    layer_norm_epsilon: float = 1e-5
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    n_embed = alias("hidden_size")
    num_attention_heads = alias("n_head")
    num_hidden_layers = alias("n_layer")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "apply_residual_connection_post_layernorm", False)
        return data


def bloom(c: BloomConfig) -> Decoder:
    """The decoder: pre-norm layers, attention from one projection by head, an MLP four times as wide."""

    def norm() -> LayerNorm:
        return LayerNorm(c.hidden_size, c.layer_norm_epsilon)

    layers = [
        Block(
            full_attention(c, qkv_bias=True, out_bias=True, fused="groups", dropout=c.attention_dropout),
            MLP(c.hidden_size, 4 * c.hidden_size, "gelu_pytorch_tanh", bias=True),
            norm(),
            norm(),
            dropout=c.hidden_dropout,
        )
        for _ in range(c.n_layer)
    ]
    return Decoder(c, layers, norm(), alibi=Alibi(c.n_head), embed_norm=norm(), padding=False)


NAMES = decoder_names(
    "transformer",
    {
        "embed_tokens": "word_embeddings",
        "embed_norm": "word_embeddings_layernorm",
        "layers.{i}.self_attn.qkv_proj": "h.{i}.self_attention.query_key_value",
        "layers.{i}.self_attn.o_proj": "h.{i}.self_attention.dense",
        "layers.{i}.mlp.up_proj": "h.{i}.mlp.dense_h_to_4h",
        "layers.{i}.mlp.down_proj": "h.{i}.mlp.dense_4h_to_h",
        "layers": "h",
        "norm": "ln_f",
    },
)

decoder_family(
    "Bloom",
    BloomConfig,
    bloom,
    tags="classifier",
    answers="transformer",
    names=NAMES,
    prefix="transformer",
    # How the training was split over devices, and remarks on it.
    ignore=(
        "apply_residual_connection_post_layernorm",
        "slow_but_exact",
        "masked_softmax_fusion",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "offset_alibi",
        "seq_length",
        "unk_token_id",
    ),
)
