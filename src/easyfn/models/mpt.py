"""MPT (MosaicML 2023): ALiBi, no biases anywhere, and a bound on queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..config.config import only
from ..config.fields import CommonFields, Size, alias
from ..core.frozen import Frozen
from ..nn import MLP, Alibi, Block, Decoder, LayerNorm
from .decoders import decoder_family, decoder_names, full_attention


@dataclass(frozen=True, kw_only=True)
class MptAttentionConfig:
    """The keys of `attn_config` that transformers reads."""

    attn_pdrop: float | int = 0
    clip_qkv: float | int | None = None
    softmax_scale: float | int | None = None
    ignored: ClassVar[tuple[str, ...]] = (
        "attn_type",
        "attn_impl",
        "prefix_lm",
        "qk_ln",
        "attn_uses_sequence_id",
        "alibi",
        "alibi_bias_max",
    )
    extra: Frozen = Frozen()

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        """What other code does with these, transformers does not do: it would compute another model in silence."""
        only(data, "attn_type", "multihead_attention")
        only(data, "prefix_lm", False)
        only(data, "qk_ln", False)
        only(data, "alibi", True)
        only(data, "alibi_bias_max", 8)
        return data


@dataclass(frozen=True, kw_only=True)
class MptConfig(CommonFields):
    """The keys of an MPT `config.json`."""

    model_type: ClassVar[str] = "mpt"
    vocab_size: Size
    d_model: Size
    n_heads: Size
    n_layers: int
    max_seq_len: Size = 2048
    layer_norm_epsilon: float = 1e-5
    attn_config: MptAttentionConfig = MptAttentionConfig()
    tie_word_embeddings: bool = True
    hidden_size = alias("d_model")
    num_attention_heads = alias("n_heads")
    num_hidden_layers = alias("n_layers")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "expansion_ratio", 4)
        only(data, "logit_scale")
        only(data, "no_bias", True)
        return {k: v for k, v in data.items() if not (k == "attn_config" and v is None)}


def mpt(c: MptConfig) -> Decoder:
    """The decoder: pre-norm layers without biases, attention from one projection, an MLP four times as wide."""
    a = c.attn_config

    def norm() -> LayerNorm:
        return LayerNorm(c.d_model, c.layer_norm_epsilon, bias=False)

    layers = [
        Block(
            full_attention(
                c, fused="rows", clip=a.clip_qkv or None, scale=a.softmax_scale, dropout=float(a.attn_pdrop)
            ),
            MLP(c.d_model, 4 * c.d_model, "gelu"),
            norm(),
            norm(),
            dropout=float(a.attn_pdrop),
        )
        for _ in range(c.n_layers)
    ]
    return Decoder(c, layers, norm(), alibi=Alibi(c.n_heads), padding=False)


NAMES = decoder_names(
    "transformer",
    {
        "embed_tokens": "wte",
        "layers.{i}.self_attn.qkv_proj": "blocks.{i}.attn.Wqkv",
        "layers.{i}.self_attn.o_proj": "blocks.{i}.attn.out_proj",
        "layers.{i}.input_layernorm": "blocks.{i}.norm_1",
        "layers.{i}.post_attention_layernorm": "blocks.{i}.norm_2",
        "layers.{i}.mlp": "blocks.{i}.ffn",
        "norm": "norm_f",
    },
)

decoder_family(
    "Mpt",
    MptConfig,
    mpt,
    tags="classifier",
    answers="transformer",
    names=NAMES,
    prefix="transformer",
    # Of training and initialisation, or kept by transformers without a use.
    ignore=(
        "emb_pdrop",
        "resid_pdrop",
        "learned_pos_emb",
        "expansion_ratio",
        "logit_scale",
        "no_bias",
        "init_device",
        "init_config",
        "embedding_fraction",
        "norm_type",
        "verbose",
    ),
)
