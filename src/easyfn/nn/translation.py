"""The encoder-decoder of Vaswani et al. 2017 (arXiv 1706.03762) as fairseq wrote it: BART, mBART and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from .activation import activation
from .attention.attention import attend_within
from .attention.core import split_heads
from .cache.cache import CrossKV, attend_to, empty_kv, layer_cache
from .context import Context, dropout
from .fold import fold
from .heads import max_positions
from .linear import Embedding, Linear
from .norm import LayerNorm
from .output import Output
from .seq2seq import attend_to_encoder, empty_cross


class TranslationAttention(eqx.Module):
    """Attention of a sequence to itself, or (`cross`) to the encoder's output."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    out_proj: Linear
    heads: int = eqx.field(static=True)
    cross: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, size: int, heads: int, dropout: float, *, cross: bool = False, key_bias: bool = True) -> None:
        if size % heads:
            raise ValueError(f"d_model={size} is no multiple of the {heads} attention heads")
        into = ("heads", "embed")
        self.q_proj, self.k_proj, self.v_proj = (Linear(size, size, b, axes=into) for b in (True, key_bias, True))
        self.out_proj = Linear(size, size, True, axes=("embed", "heads"))
        self.heads = heads
        self.cross = cross
        self.dropout = dropout

    def keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        if self.cross:
            cache, k, v, mask = attend_to_encoder(cache, context, self.keys)
        else:
            cache, k, v, mask = attend_to(cache, *self.keys(x), context, None)
        q = split_heads(self.q_proj(x), self.heads)
        out, weights = attend_within(
            context, q, k, v, mask, scale=q.shape[-1] ** -0.5, dropout=self.dropout, site=10 + self.cross
        )
        return self.out_proj(out), cache, weights


class TranslationBlock(eqx.Module):
    """Self attention, cross attention (in a decoder) and feed-forward, each with a residual, normed before or after.

    `config` has BART's keys; `side` is `encoder` or `decoder`; `attention` is a self attention of another kind.
    """

    self_attn: Any
    self_attn_layer_norm: LayerNorm
    encoder_attn: TranslationAttention | None
    encoder_attn_layer_norm: LayerNorm | None
    fc1: Linear
    fc2: Linear
    final_layer_norm: LayerNorm
    act: str = eqx.field(static=True)
    pre_norm: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    activation_dropout: float = eqx.field(static=True)

    def __init__(self, config: Any, side: str, *, pre_norm: bool, key_bias: bool = True, attention: Any = None) -> None:
        c, size = config, config.d_model
        heads, wide = getattr(c, f"{side}_attention_heads"), getattr(c, f"{side}_ffn_dim")
        decoder = side == "decoder"
        own = lambda cross: TranslationAttention(size, heads, c.attention_dropout, cross=cross, key_bias=key_bias)
        self.self_attn = attention or own(False)
        self.self_attn_layer_norm = LayerNorm(size)
        self.encoder_attn = own(True) if decoder else None
        self.encoder_attn_layer_norm = LayerNorm(size) if decoder else None
        self.fc1 = Linear(size, wide, True, axes=("mlp", "embed"))
        self.fc2 = Linear(wide, size, True, axes=("embed", "mlp"))
        self.final_layer_norm = LayerNorm(size)
        self.act = c.activation_function
        activation(self.act)
        self.pre_norm = pre_norm
        self.dropout = c.dropout
        self.activation_dropout = c.activation_dropout

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        own, encoded = (None, None) if cache is None else cache
        before = lambda norm, x: norm(x) if self.pre_norm else x
        after = lambda norm, x: x if self.pre_norm else norm(x)
        h, own, attentions = self.self_attn(before(self.self_attn_layer_norm, x), context, own)
        x = after(self.self_attn_layer_norm, x + dropout(h, self.dropout, context, 0))
        crossed = None
        if self.encoder_attn is not None:
            norm = self.encoder_attn_layer_norm
            h, encoded, crossed = self.encoder_attn(before(norm, x), context, encoded)
            x = after(norm, x + dropout(h, self.dropout, context, 1))
        h = activation(self.act)(self.fc1(before(self.final_layer_norm, x)))
        h = self.fc2(dropout(h, self.activation_dropout, context, 2))
        x = after(self.final_layer_norm, x + dropout(h, self.dropout, context, 3))
        return x, None if cache is None else (own, encoded), {"attentions": attentions, "cross_attentions": crossed}


@layer_cache.register(TranslationBlock)
def _(block: TranslationBlock, batch_size: int, max_length: int, dtype: Any) -> tuple[Any, CrossKV] | None:
    if block.encoder_attn is None:
        return None
    heads = block.self_attn.heads
    dim = block.self_attn.q_proj.weight.shape[0] // heads
    own = empty_kv(batch_size, heads, dim, max_length, None, dtype)
    return own, empty_cross(batch_size, heads, dim, dtype)


class TranslationStack(eqx.Module):
    """The encoder or the decoder: embeddings with positions, the blocks, and a norm if `pre_norm`.

    - `positions`: a layer that makes them of the context.
    - `pre_norm`: each part is normed before, and what comes out of the last block; otherwise each sum is.
    - `embed_norm`: the embeddings are normed with their positions, or (`"before"`) before they get them.
    - `attention(layer)`: its self attention, where that is of another kind.
    - `table`: token embeddings of its own, where both sides do not share one.
    """

    embed_tokens: Embedding | None
    embed_positions: Any
    layernorm_embedding: LayerNorm | None
    layers: tuple[Any, ...]
    layer_norm: LayerNorm | None
    config: Any = eqx.field(static=True)
    decoder: bool = eqx.field(static=True)
    before: bool = eqx.field(static=True)

    def __init__(
        self,
        config: Any,
        side: str,
        positions: Any,
        *,
        pre_norm: bool = False,
        embed_norm: bool | str = True,
        table: Embedding | None = None,
        attention: Callable[[int], Any] | None = None,
    ) -> None:
        c = config
        self.embed_tokens = table
        self.embed_positions = positions
        self.layernorm_embedding = LayerNorm(c.d_model) if embed_norm else None
        depth = getattr(c, f"{side}_layers")
        self.layers = tuple(
            TranslationBlock(c, side, pre_norm=pre_norm, attention=attention and attention(i)) for i in range(depth)
        )
        self.layer_norm = LayerNorm(c.d_model) if pre_norm else None
        self.config = c
        self.decoder = side == "decoder"
        self.before = embed_norm == "before"

    def __call__(self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array) -> Output:
        context = context.replace(causal=self.decoder)
        norm = self.layernorm_embedding or (lambda x: x)
        x, places = inputs_embeds, self.embed_positions(context).astype(inputs_embeds.dtype)
        x = norm(x) + places if self.before else norm(x + places)
        x = dropout(x, self.config.dropout, context, 1_000_003)
        x, cache, trace = fold(self.layers, x, context, cache)
        x = x if self.layer_norm is None else self.layer_norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)


@max_positions.register(TranslationStack)
def _(stack: TranslationStack) -> int | None:
    return max_positions(stack.embed_positions)
