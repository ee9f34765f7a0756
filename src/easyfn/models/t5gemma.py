"""T5Gemma (Zhang et al. 2025, arXiv 2504.06225): an encoder-decoder made of two Gemma 2, which may differ in size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax

from ..config.fields import CommonFields, Gemma2Fields, Size, head_dim
from ..names.rules import rename
from ..nn import (
    Attention,
    Context,
    Decoder,
    GatedMLP,
    Linear,
    Output,
    RMSNorm,
    Seq2Seq,
    Seq2SeqLM,
    attend_to_encoder,
    attend_within,
    dropout,
    empty_cross,
    layer_cache,
    split_heads,
)
from ..registry.family import family
from .decoders import alternate, decoder, layer_windows
from .translation import Ids


@dataclass(frozen=True, kw_only=True)
class T5GemmaModuleConfig(Gemma2Fields):
    """The keys of one side, Gemma 2's. Without `layer_types`, every second layer sees everything."""

    model_type: ClassVar[str] = "t5_gemma_module"
    ignored: ClassVar[tuple[str, ...]] = ("is_decoder", "cross_attention_hidden_size", "dropout_rate")
    vocab_size: Size = 256000
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: int = 26
    num_attention_heads: Size = 8
    eos_token_id: Ids = 1
    bos_token_id: int | None = 2


class of_decoder:
    """A fact of the nested `decoder` config under the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: Any, cls: type | None = None) -> Any:
        return self if config is None else getattr(config.decoder, self.name)


@dataclass(frozen=True, kw_only=True)
class T5GemmaConfig(CommonFields):
    """The keys of a T5Gemma `config.json`."""

    model_type: ClassVar[str] = "t5gemma"
    encoder: T5GemmaModuleConfig = T5GemmaModuleConfig()
    decoder: T5GemmaModuleConfig = T5GemmaModuleConfig()
    vocab_size: Size = 256000
    dropout_rate: float | int = 0.0
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    hidden_size = of_decoder()
    max_position_embeddings = of_decoder()
    bos_token_id = of_decoder()
    pad_token_id = of_decoder()
    eos_token_id = of_decoder()

    @property
    def decoder_vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def decoder_start_token_id(self) -> int | None:
        return self.decoder.bos_token_id


class CrossAttention(eqx.Module):
    """Attention to the encoder's output, which may have another width; without positions."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    heads: int = eqx.field(static=True)
    kv_heads: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    softcap: float | None = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: T5GemmaModuleConfig, source: int, dropout: float) -> None:
        wide, narrow, bias = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.attention_bias
        self.q_proj = Linear(c.hidden_size, wide, bias, axes=("heads", "embed"))
        self.k_proj, self.v_proj = (Linear(source, narrow, bias, axes=("kv_heads", "embed")) for _ in range(2))
        self.o_proj = Linear(wide, c.hidden_size, bias, axes=("embed", "heads"))
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.scale, self.softcap = c.query_pre_attn_scalar**-0.5, c.attn_logit_softcapping
        self.dropout = dropout

    def keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return split_heads(self.k_proj(x), self.kv_heads), split_heads(self.v_proj(x), self.kv_heads)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        cache, k, v, mask = attend_to_encoder(cache, context, self.keys)
        q = split_heads(self.q_proj(x), self.heads)
        out, weights = attend_within(
            context, q, k, v, mask, scale=self.scale, dropout=self.dropout, site=11, softcap=self.softcap
        )
        return self.o_proj(out), cache, weights


class T5GemmaBlock(eqx.Module):
    """Self attention, cross attention (in a decoder) and MLP, each between two norms."""

    self_attn: Attention
    cross_attn: CrossAttention | None
    mlp: GatedMLP
    pre_self_attn_layernorm: RMSNorm
    post_self_attn_layernorm: RMSNorm
    pre_cross_attn_layernorm: RMSNorm | None
    post_cross_attn_layernorm: RMSNorm | None
    pre_feedforward_layernorm: RMSNorm
    post_feedforward_layernorm: RMSNorm
    dropout: float = eqx.field(static=True)

    def __init__(self, c: T5GemmaModuleConfig, attention: Attention, cross: CrossAttention | None, rate: float) -> None:
        norm = lambda: RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
        self.self_attn = attention
        self.cross_attn = cross
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_activation)
        self.pre_self_attn_layernorm, self.post_self_attn_layernorm = norm(), norm()
        self.pre_cross_attn_layernorm, self.post_cross_attn_layernorm = (norm() if cross else None for _ in range(2))
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = norm(), norm()
        self.dropout = rate

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        own, encoded = (None, None) if cache is None else cache
        h, own, attentions = self.self_attn(self.pre_self_attn_layernorm(x), context, own)
        x = x + dropout(self.post_self_attn_layernorm(h), self.dropout, context, 20)
        crossed = None
        if self.cross_attn is not None:
            assert self.pre_cross_attn_layernorm is not None and self.post_cross_attn_layernorm is not None
            h, encoded, crossed = self.cross_attn(self.pre_cross_attn_layernorm(x), context, encoded)
            x = x + dropout(self.post_cross_attn_layernorm(h), self.dropout, context, 21)
        h = self.mlp(self.pre_feedforward_layernorm(x), context)
        x = x + dropout(self.post_feedforward_layernorm(h), self.dropout, context, 22)
        return x, None if cache is None else (own, encoded), {"attentions": attentions, "cross_attentions": crossed}


@layer_cache.register(T5GemmaBlock)
def _(block: T5GemmaBlock, batch_size: int, max_length: int, dtype: Any) -> Any:
    if block.cross_attn is None:
        return None
    own = layer_cache(block.self_attn, batch_size, max_length, dtype)
    return own, empty_cross(batch_size, block.self_attn.num_kv_heads, block.self_attn.head_dim, dtype)


class BothWays(eqx.Module):
    """A decoder in which every token sees all: the encoder."""

    stack: Decoder

    @property
    def embed_tokens(self) -> Any:
        return self.stack.embed_tokens

    def __call__(self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array) -> Output:
        return self.stack(context.replace(causal=False), cache, inputs_embeds=inputs_embeds)


def side(config: T5GemmaConfig, c: T5GemmaModuleConfig, *, source: int | None) -> Decoder:
    """One side, whose embeddings are scaled, also those that the caller gives; `source` is the width of the encoder."""
    windows = layer_windows(c, c.layer_types or alternate(c.num_hidden_layers, 2), c.sliding_window)
    rate, cut = config.dropout_rate, config.attention_dropout

    def block(i: int) -> T5GemmaBlock:
        window = windows[i]
        if source is None and window is not None:
            window += 1  # an encoder's counts the tokens on each side, and the token itself is one more
        attention = Attention(
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            head_dim(c),
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
            scale=c.query_pre_attn_scalar**-0.5,
            softcap=c.attn_logit_softcapping,
            window=window,
            dropout=cut,
        )
        return T5GemmaBlock(c, attention, None if source is None else CrossAttention(c, source, cut), rate)

    last = RMSNorm(c.hidden_size, c.rms_norm_eps, offset=1.0)
    return decoder(c, block, last, embed_scale=c.hidden_size**0.5, scale_inputs=True, dropout=rate)


def t5gemma(c: T5GemmaConfig) -> Seq2Seq:
    """Encoder and decoder, with a table of embeddings each."""
    decoder = side(c, c.decoder, source=c.encoder.hidden_size)
    return Seq2Seq(c, None, BothWays(side(c, c.encoder, source=None)), decoder)


def t5gemma_lm(c: T5GemmaConfig) -> Seq2SeqLM:
    """With the head of a language model, tied to the decoder's embeddings."""
    return Seq2SeqLM(t5gemma(c), tied=c.tie_word_embeddings, softcap=c.decoder.final_logit_softcapping)


family(
    "t5gemma",
    config=T5GemmaConfig,
    tasks={"seq2seq-lm": t5gemma_lm, "base": t5gemma},
    architectures={"T5GemmaForConditionalGeneration": "seq2seq-lm", "T5GemmaModel": "base"},
    names=[
        rename("model.encoder.stack.{rest}", "model.encoder.{rest}"),
        rename("encoder.stack.{rest}", "encoder.{rest}"),
        rename("lm_head.{rest}", "lm_head.out_proj.{rest}"),
    ],
    # Old files say it of both sides at once; for heads that are not here.
    ignore=("classifier_dropout_rate", "initializer_range"),
)
