"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): a pre-norm, rotary encoder, two local layers to a global one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..config.config import labels, only
from ..config.fields import CommonFields, Size, head_dim, rope
from ..core.frozen import Frozen
from ..nn import (
    Block,
    ClassificationHead,
    EncoderEmbeddings,
    EncoderLayers,
    FusedGatedMLP,
    LayerNorm,
    Linear,
    MaskedLM,
    MultipleChoice,
    PooledClassifier,
    QuestionAnswering,
    TextEncoder,
    TokenClassifier,
)
from .decoders import full_attention, layer_windows, rope_by_kind
from .encoders import encoder_family


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig(CommonFields):
    """The keys of a ModernBERT `config.json`. `rope_parameters` has one entry per kind of layer.

    A layer that slides sees `local_attention // 2` tokens to either side. Without `layer_types`, every third layer is
    global, from the first on.
    """

    model_type: ClassVar[str] = "modernbert"
    vocab_size: Size = 50368
    hidden_size: Size = 768
    intermediate_size: Size = 1152
    num_hidden_layers: int = 22
    num_attention_heads: Size = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: Size = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    layer_types: tuple[str, ...] | None = None
    rope_parameters: Frozen = Frozen(sliding_attention=rope(10000.0), full_attention=rope(160000.0))
    local_attention: int = 128
    embedding_dropout: float | int = 0.0
    mlp_bias: bool = False
    mlp_dropout: float | int = 0.0
    decoder_bias: bool = True
    classifier_pooling: Literal["cls", "mean"] = "cls"
    classifier_dropout: float | int = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True
    type_vocab_size = property(lambda c: 0)
    layer_norm_eps = property(lambda c: c.norm_eps)
    hidden_dropout_prob = property(lambda c: c.embedding_dropout)

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        only(data, "is_decoder", False)
        if data.get("sparse_prediction"):  # the loss is the same: unmasked tokens have no label
            only(data, "sparse_pred_ignore_index", -100)
        return kinds_and_tables(data)


def kinds_and_tables(data: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` with `layer_types`, and rotary settings for each kind."""
    only(data, "rope_theta")  # there are two
    data = labels(data)
    every = data.get("global_attn_every_n_layers") or 3
    if data.get("layer_types") is None and "num_hidden_layers" in data:
        data["layer_types"] = global_first(data["num_hidden_layers"], every)
    full, local = (data.pop(f"{name}_rope_theta", None) for name in ("global", "local"))
    kinds = ("full_attention", "sliding_attention")
    return rope_by_kind(data, sliding=local or 10000.0, full=full or 160000.0, scaled=kinds)


def global_first(layers: int, every: int = 3) -> tuple[str, ...]:
    """Kinds of attention where the first of `every` so many layers is global."""
    return tuple("sliding_attention" if i % every else "full_attention" for i in range(layers))


def norm(c: ModernBertConfig) -> LayerNorm:
    """The norm of a config, as wide as its hidden states."""
    return LayerNorm(c.hidden_size, c.norm_eps, bias=c.norm_bias)


def modernbert_block(
    c: ModernBertConfig, i: int, kind: str, window: int | None, *, fused: str | None = "rows"
) -> Block:
    """Layer `i`: the norm of the embeddings is the first layer's as well."""
    bias, rate = c.attention_bias, c.attention_dropout
    attention = full_attention(c, fused=fused, qkv_bias=bias, out_bias=bias, dropout=rate, window=window, rope=kind)
    mlp = FusedGatedMLP(
        c.hidden_size, c.intermediate_size, c.hidden_activation, bias=c.mlp_bias, inner_dropout=c.mlp_dropout
    )
    return Block(attention, mlp, norm(c) if i else None, norm(c), dropout=rate, mlp_dropout=0.0)


def modernbert(c: ModernBertConfig, *, pooler: bool = False) -> TextEncoder:
    """The encoder, which never has a pooler."""
    kinds = c.layer_types or global_first(c.num_hidden_layers)
    windows = layer_windows(c, kinds, c.local_attention // 2 + 1)
    return TextEncoder(
        c,
        pooler=False,
        embeddings=EncoderEmbeddings(c, positions=False, norm=norm(c)),
        rope={kind: c.rope_parameters[kind] for kind in sorted(set(kinds))},
        head_dim=head_dim(c),
        layers=EncoderLayers(
            tuple(modernbert_block(c, i, *each) for i, each in enumerate(zip(kinds, windows, strict=True)))
        ),
        norm=norm(c),
    )


def _head(c: ModernBertConfig, count: int) -> ClassificationHead:
    return ClassificationHead(
        c.hidden_size,
        count,
        act=c.classifier_activation,
        dropout=c.classifier_dropout,
        norm=norm(c),
        bias=c.classifier_bias,
    )


def _masked_lm(c: ModernBertConfig) -> MaskedLM:
    return MaskedLM(
        modernbert(c),
        tied=c.tie_word_embeddings,
        act=c.classifier_activation,
        transform=(Linear(c.hidden_size, c.hidden_size, c.classifier_bias, axes=("mlp", "embed")), norm(c)),
        bias="own" if c.decoder_bias else "none",
    )


# What only flash attention reads, what `kinds_and_tables` has looked at, and what transformers never read.
UNREAD = (
    "deterministic_flash_attn",
    "reference_compile",
    "repad_logits_with_grad",
    "initializer_cutoff_factor",
    "cls_token_id",
    "layer_norm_eps",
    "global_attn_every_n_layers",
    "position_embedding_type",
)
LAYER = "encoder.layer.{i}."
encoder_family(
    "ModernBert",
    ModernBertConfig,
    modernbert,
    prefix="model",
    lm_head=_masked_lm,
    classifier=lambda c: PooledClassifier(
        modernbert(c), classifier=_head(c, c.num_labels), pooling=c.classifier_pooling
    ),
    choice=lambda c: MultipleChoice(modernbert(c), classifier=_head(c, 1), pooling=c.classifier_pooling),
    tasks={
        "token-classification": lambda c: TokenClassifier(modernbert(c), classifier=_head(c, c.num_labels)),
        "question-answering": lambda c: QuestionAnswering(modernbert(c), classifier=_head(c, 2)),
    },
    layers=[
        ("embeddings.word_embeddings.{rest}", "embeddings.tok_embeddings.{rest}"),
        ("embeddings.LayerNorm.{rest}", "embeddings.norm.{rest}"),
        *(
            (f"{LAYER}{ours}.{{rest}}", f"layers.{{i}}.{theirs}.{{rest}}")
            for ours, theirs in (
                ("self_attn.qkv_proj", "attn.Wqkv"),
                ("self_attn.o_proj", "attn.Wo"),
                ("mlp.gate_up_proj", "mlp.Wi"),
                ("mlp.down_proj", "mlp.Wo"),
                ("input_layernorm", "attn_norm"),
                ("post_attention_layernorm", "mlp_norm"),
            )
        ),
        ("norm.{rest}", "final_norm.{rest}"),
    ],
    heads=[
        ("dense.{rest}", "head.dense.{rest}"),
        ("norm.{rest}", "head.norm.{rest}"),
        ("bias", "decoder.bias"),
        *(
            (f"{name}.{ours}.{{rest}}", f"{theirs}.{{rest}}")
            for name in ("classifier", "qa_outputs")
            for ours, theirs in (("dense", "head.dense"), ("norm", "head.norm"), ("out_proj", "classifier"))
        ),
    ],
    ignore=(*UNREAD, "sparse_prediction", "sparse_pred_ignore_index"),
    ignore_tensors=(),
)
