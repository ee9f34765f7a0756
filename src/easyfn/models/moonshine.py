"""Moonshine (Jeffries et al. 2024, arXiv 2410.15608): an encoder of samples and a decoder, both with rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config.config import only
from ..config.fields import CommonFields, Size, alias, rope
from ..core.frozen import Frozen
from ..core.weight import Slot, Weight, dense, slots
from ..inputs.statement import Input, Inputs, inputs
from ..names.rules import Rule, rename
from ..nn import (
    Attention,
    Context,
    Conv,
    Embedding,
    LayerNorm,
    Linear,
    Output,
    Seq2Seq,
    Seq2SeqLM,
    activation,
    attend_to_encoder,
    attend_within,
    empty_cross,
    fold,
    frame_context,
    layer_cache,
    rope_table,
    source_segments,
    split_heads,
)
from ..nn.linear import along_last, declare, pad_token
from ..registry.family import family

STRIDE = 64 * 3 * 2  # samples of a frame


@dataclass(frozen=True, kw_only=True)
class MoonshineConfig(CommonFields):
    """The keys of a Moonshine `config.json`."""

    model_type: ClassVar[str] = "moonshine"
    vocab_size: Size = 32768
    hidden_size: Size = 288
    intermediate_size: Size = 1152
    encoder_num_hidden_layers: int = 6
    decoder_num_hidden_layers: int = 6
    encoder_num_attention_heads: Size = 8
    decoder_num_attention_heads: Size = 8
    encoder_hidden_act: str = "gelu"
    decoder_hidden_act: str = "silu"
    max_position_embeddings: Size = 512
    rope_parameters: Frozen = rope(partial_rotary_factor=0.9)
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = 1
    num_attention_heads = alias("decoder_num_attention_heads")
    num_hidden_layers = alias("decoder_num_hidden_layers")
    hidden_act = alias("decoder_hidden_act")

    @staticmethod
    def normalize(data: dict[str, Any]) -> dict[str, Any]:
        # The reference builds both sides with the heads of the encoder, and cannot run with fewer key heads.
        heads = data.get("encoder_num_attention_heads", 8)
        for key in ("decoder_num_attention_heads", "encoder_num_key_value_heads", "decoder_num_key_value_heads"):
            only(data, key, heads)
        return data


class MoonshineMLP(eqx.Module):
    """`fc2(act(fc1(x)))`; in the decoder the second half of `fc1(x)` is the gate."""

    fc1: Linear
    fc2: Linear
    act: str = eqx.field(static=True)
    gated: bool = eqx.field(static=True)

    def __init__(self, c: Any, act: str, *, gated: bool) -> None:
        activation(act)
        self.fc1 = Linear(c.hidden_size, c.intermediate_size * (1 + gated), True, axes=("mlp", "embed"))
        self.fc2 = Linear(c.intermediate_size, c.hidden_size, True, axes=("embed", "mlp"))
        self.act, self.gated = act, gated

    def __call__(self, x: jax.Array) -> jax.Array:
        h, act = self.fc1(x), activation(self.act)
        if not self.gated:
            return self.fc2(act(h))
        up, gate = jnp.split(h, 2, axis=-1)
        return self.fc2(act(gate) * up)


class CrossAttention(eqx.Module):
    """Attention to the encoder's output, without positions."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    heads: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(self, c: Any) -> None:
        size = c.hidden_size
        self.q_proj, self.k_proj, self.v_proj = (
            Linear(size, size, c.attention_bias, axes=("heads", "embed")) for _ in range(3)
        )
        self.o_proj = Linear(size, size, axes=("embed", "heads"))
        self.heads, self.dropout = c.encoder_num_attention_heads, c.attention_dropout

    def keys(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def __call__(self, x: jax.Array, context: Context, cache: Any) -> tuple[jax.Array, Any, jax.Array | None]:
        cache, k, v, mask = attend_to_encoder(cache, context, self.keys)
        q = split_heads(self.q_proj(x), self.heads)
        out, weights = attend_within(context, q, k, v, mask, scale=q.shape[-1] ** -0.5, dropout=self.dropout, site=11)
        return self.o_proj(out), cache, weights


class MoonshineBlock(eqx.Module):
    """Self attention, cross attention (in the decoder) and feed-forward, each with a norm before it and a residual."""

    self_attn: Attention
    encoder_attn: CrossAttention | None
    mlp: MoonshineMLP
    input_layernorm: LayerNorm
    post_attention_layernorm: LayerNorm
    final_layernorm: LayerNorm | None

    def __init__(self, c: Any, *, decoder: bool) -> None:
        size, heads = c.hidden_size, c.encoder_num_attention_heads
        if size % heads:
            raise ValueError(f"moonshine: hidden_size={size} is no multiple of the {heads} attention heads")
        bias = c.attention_bias
        self.self_attn = Attention(
            size, heads, heads, size // heads, qkv_bias=bias, interleaved=True, dropout=c.attention_dropout
        )
        self.encoder_attn = CrossAttention(c) if decoder else None
        self.mlp = MoonshineMLP(c, c.decoder_hidden_act if decoder else c.encoder_hidden_act, gated=decoder)
        self.input_layernorm, self.post_attention_layernorm = (LayerNorm(size, bias=False) for _ in range(2))
        self.final_layernorm = LayerNorm(size, bias=False) if decoder else None

    def __call__(self, x: jax.Array, context: Context, cache: Any = None) -> tuple[jax.Array, Any, dict[str, Any]]:
        own, encoded = (None, None) if cache is None else cache
        h, own, attentions = self.self_attn(self.input_layernorm(x), context, own)
        x, crossed, last = x + h, None, self.post_attention_layernorm
        if self.encoder_attn is not None:
            assert self.final_layernorm is not None
            h, encoded, crossed = self.encoder_attn(self.post_attention_layernorm(x), context, encoded)
            x, last = x + h, self.final_layernorm
        x = x + self.mlp(last(x))
        return x, None if cache is None else (own, encoded), {"attentions": attentions, "cross_attentions": crossed}


@layer_cache.register(MoonshineBlock)
def _(block: MoonshineBlock, batch_size: int, max_length: int, dtype: Any) -> Any:
    if block.encoder_attn is None:
        return None
    own, a = layer_cache(block.self_attn, batch_size, max_length, dtype), block.self_attn
    return own, empty_cross(batch_size, a.num_heads, a.head_dim, dtype)


def turned(context: Context, c: Any) -> Context:
    """The context with the rotary table of its positions."""
    size = c.hidden_size // c.encoder_num_attention_heads
    table = rope_table(c.rope_parameters, size, c.max_position_embeddings, context.position_ids)
    return context.replace(rope={"default": table})


class WholeNorm(eqx.Module):
    """Each recording normed over all its frames and channels, then every channel scaled and moved (torch's `GroupNorm` of
    one group)."""

    weight: Weight
    bias: Weight

    def __init__(self, channels: int) -> None:
        self.weight, self.bias = declare(channels), declare(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=(1, 2), keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=(1, 2), keepdims=True) + 1e-5)
        weight, bias = (along_last(dense(w).astype(jnp.float32), h) for w in (self.weight, self.bias))
        return (h * weight + bias).astype(x.dtype)


@slots.register(WholeNorm)
def _(norm: WholeNorm) -> dict[str, Slot]:
    return {"weight": Slot("norm", ("norm",), "ones"), "bias": Slot("norm", ("norm",), "zeros")}


class MoonshineEncoder(eqx.Module):
    """Samples to hidden states of frames. `input_values` are `(batch, samples)`; rows are padded behind their sound."""

    conv1: Conv
    conv2: Conv
    conv3: Conv
    groupnorm: WholeNorm
    layers: tuple[Any, ...]
    layer_norm: LayerNorm
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        c, size = config, config.hidden_size
        self.conv1 = Conv(1, size, (127,), False, stride=64)
        self.conv2 = Conv(size, 2 * size, (7,), stride=3, axes=(None, "embed"))
        self.conv3 = Conv(2 * size, size, (3,), stride=2)
        self.groupnorm = WholeNorm(size)
        self.layers = tuple(MoonshineBlock(c, decoder=False) for _ in range(c.encoder_num_hidden_layers))
        self.layer_norm = LayerNorm(size, bias=False)
        self.config = c

    def __call__(self, context: Context, cache: Any = None, *, input_values: jax.Array) -> Output:
        if input_values.shape[1] < 127 + 64 * (6 + 2 * 3):
            raise ValueError(
                f"{input_values.shape[1]} samples of sound are fewer than the first frame of this model needs"
            )
        gelu = activation("gelu")
        x = self.groupnorm(jnp.tanh(self.conv1(input_values[..., None].astype(dense(self.conv1.weight).dtype))))
        x = gelu(self.conv3(gelu(self.conv2(x))))
        context = frame_context(context, source_segments(self, context.segment_ids, x.shape[1]))
        places = jnp.broadcast_to(context.slots[None], x.shape[:2])  # padding has a place too
        context = turned(context.replace(position_ids=places), self.config)
        x, _, trace = fold(self.layers, x, context)
        x = self.layer_norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, **trace)


@inputs.register(MoonshineEncoder)
def _(model: MoonshineEncoder) -> Inputs:
    return Inputs({"input_values": Input("audio", ("batch", "seq"), optional=False)}, ("input_values",))


@source_segments.register(MoonshineEncoder)
def _(encoder: MoonshineEncoder, segments: jax.Array, length: int) -> jax.Array:
    return segments[:, ::STRIDE][:, :length]


class MoonshineDecoder(eqx.Module):
    """Text, with an eye on the encoder's output."""

    layers: tuple[Any, ...]
    norm: LayerNorm
    config: Any = eqx.field(static=True)

    def __init__(self, config: Any) -> None:
        self.layers = tuple(MoonshineBlock(config, decoder=True) for _ in range(config.decoder_num_hidden_layers))
        self.norm = LayerNorm(config.hidden_size, bias=False)
        self.config = config

    def __call__(self, context: Context, cache: Any = None, *, inputs_embeds: jax.Array) -> Output:
        x, cache, trace = fold(self.layers, inputs_embeds, turned(context, self.config), cache)
        x = self.norm(x)
        if context.wants("hidden_states"):
            trace["hidden_states"] = (*trace["hidden_states"], x)
        return Output(last_hidden_state=x, cache=cache, **trace)


def moonshine(config: Any) -> Seq2Seq:
    """Encoder and decoder."""
    table = Embedding(config.vocab_size, config.hidden_size, padding=pad_token(config))
    return Seq2Seq(config, table, MoonshineEncoder(config), MoonshineDecoder(config))


def _names(model: Any) -> list[Rule]:
    prefix = "model." if isinstance(model, Seq2SeqLM) else ""
    return [
        rename(f"{prefix}shared.weight", f"{prefix}decoder.embed_tokens.weight"),
        rename("lm_head.weight", "proj_out.weight"),
    ]


family(
    "moonshine",
    config=MoonshineConfig,
    tasks={"seq2seq-lm": lambda c: Seq2SeqLM(moonshine(c), tied=c.tie_word_embeddings), "base": moonshine},
    architectures={"MoonshineForConditionalGeneration": "seq2seq-lm", "MoonshineModel": "base"},
    names=_names,
    # Zeros that fill heads up for a kernel; heads of keys, which are those of queries.
    ignore=("pad_head_dim_to_multiple_of", "encoder_num_key_value_heads", "decoder_num_key_value_heads"),
)
